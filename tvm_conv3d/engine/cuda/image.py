"""What is kept of a convolution compiled for a GPU: machine code, its source, and the launches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_MAGIC = b"tvm_conv3d cuda 3\n"


@dataclass(frozen=True)
class Launch:
    """One kernel's launch.

    Attributes:
        kernel: its name.
        grid, block: extents.
        shared: bytes of shared memory sized at launch.
        arguments: names of the function's arguments and workspaces, in the kernel's order.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Launches:
    """What a call of one function launches.

    Attributes:
        launches: of its kernels, in order.
        workspaces: bytes of each buffer that a call needs beside its arguments, by name.
    """

    launches: tuple[Launch, ...]
    workspaces: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The launches as JSON's types."""
        return {"launches": [asdict(launch) for launch in self.launches], "workspaces": dict(self.workspaces)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Launches:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: `values` are no launches.
        """
        launches = tuple(
            Launch(e["kernel"], tuple(e["grid"]), tuple(e["block"]), int(e["shared"]), tuple(e["arguments"]))
            for e in values["launches"]
        )
        return cls(launches, {str(name): int(size) for name, size in values["workspaces"].items()})


@dataclass(frozen=True)
class Image:
    """Code of one convolution for one architecture.

    Attributes:
        arch: such as "sm_90".
        source: CUDA source.
        functions: what a call of each function launches, by its name.
        cubin: machine code; empty where there was no compiler: then the source is compiled when it is loaded.
    """

    arch: str
    source: str
    functions: Mapping[str, Launches]
    cubin: bytes = b""

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels of all functions."""
        return [launch.kernel for launch in self.launches]

    @property
    def launches(self) -> list[Launch]:
        """The launches of all functions."""
        return [launch for function in self.functions.values() for launch in function.launches]

    def to_bytes(self) -> bytes:
        """The image as one file."""
        functions = {name: function.to_json() for name, function in self.functions.items()}
        text = json.dumps({"arch": self.arch, "source": self.source, "functions": functions}).encode()
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
            functions = {str(name): Launches.from_json(values) for name, values in head["functions"].items()}
            return cls(head["arch"], head["source"], functions, data[end:])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"This code for a GPU is damaged: {error}") from error
