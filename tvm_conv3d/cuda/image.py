"""What is kept of a convolution compiled for a GPU: machine code, its source, and the launches."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tvm_conv3d.cuda import toolkit
from tvm_conv3d.cuda.lower import Launch, lower

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.target import Target

_MAGIC = b"tvm_conv3d cuda 2\n"


@dataclass(frozen=True)
class Image:
    """Code of one convolution for one architecture.

    Attributes:
        arch: such as "sm_90".
        source: CUDA source.
        launches: of its kernels, in order.
        workspaces: bytes of each buffer that a call needs beside its arguments.
        cubin: machine code; empty where there was no compiler: then the source is compiled when it is loaded.
    """

    arch: str
    source: str
    launches: tuple[Launch, ...]
    workspaces: tuple[int, ...] = ()
    cubin: bytes = b""

    def to_bytes(self) -> bytes:
        """The image as one file."""
        launches = [asdict(launch) for launch in self.launches]
        head = {"arch": self.arch, "source": self.source, "launches": launches, "workspaces": self.workspaces}
        text = json.dumps(head).encode()
        return _MAGIC + len(text).to_bytes(8, "little") + text + self.cubin

    @staticmethod
    def recognizes(data: bytes) -> bool:
        """Whether `data` begins as an image does."""
        return data.startswith(_MAGIC)

    @classmethod
    def from_bytes(cls, data: bytes) -> Image:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: `data` is no image.
        """
        if not cls.recognizes(data):
            raise ValueError("This is no code for a GPU that tvm_conv3d wrote.")
        start = len(_MAGIC) + 8
        end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        try:
            head = json.loads(data[start:end])
            launches = tuple(
                Launch(e["kernel"], tuple(e["grid"]), tuple(e["block"]), int(e["shared"]), tuple(e["arguments"]))
                for e in head["launches"]
            )
            return cls(head["arch"], head["source"], launches, tuple(map(int, head["workspaces"])), data[end:])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"This code for a GPU is damaged: {error}") from error


def compile_image(module: IRModule, target: Target) -> Image:
    """The scheduled `main` compiled for `target`, as source only where no CUDA compiler is found.

    Raises:
        RuntimeError: TVM or the compiler refuses it.
    """
    code = lower(module, target)
    arch = str(target.attrs["arch"])
    try:
        cubin = toolkit.compile_cubin(code.source, arch)
    except toolkit.NoCompilerError:
        cubin = b""
    return Image(arch, code.source, code.launches, code.workspaces, cubin)
