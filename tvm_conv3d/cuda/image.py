"""What is kept of a convolution compiled for a GPU: machine code, its source, and the launches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

_MAGIC = b"tvm_conv3d cuda 4\n"


@dataclass(frozen=True)
class Launch:
    """One kernel's launch.

    Attributes:
        kernel: its name.
        grid, block: extents.
        shared: bytes of shared memory sized at launch.
        arguments: names of the function's arguments and workspaces, in the kernel's order.
        function: name of the function that it is a part of.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[str, ...]
    function: str


@dataclass(frozen=True)
class Image:
    """Code of one convolution, and of packing its weights, for one architecture.

    Attributes:
        arch: such as "sm_90".
        source: CUDA source.
        launches: of its kernels, those of a function in order.
        workspaces: bytes of each buffer that a call needs beside its arguments, by name.
        cubin: machine code; empty where there was no compiler: then the source is compiled when it is loaded.
    """

    arch: str
    source: str
    launches: tuple[Launch, ...]
    workspaces: Mapping[str, int] = field(default_factory=dict)
    cubin: bytes = b""

    def to_bytes(self) -> bytes:
        """The image as one file."""
        launches = [asdict(launch) for launch in self.launches]
        head = {"arch": self.arch, "source": self.source, "launches": launches, "workspaces": dict(self.workspaces)}
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
                Launch(
                    e["kernel"],
                    tuple(e["grid"]),
                    tuple(e["block"]),
                    int(e["shared"]),
                    tuple(e["arguments"]),
                    str(e["function"]),
                )
                for e in head["launches"]
            )
            workspaces = {str(name): int(size) for name, size in head["workspaces"].items()}
            return cls(head["arch"], head["source"], launches, workspaces, data[end:])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"This code for a GPU is damaged: {error}") from error
