"""Machine code of GPU kernels (SASS), as NVIDIA's disassembler prints it: what the main loop multiplies, reads, stores.

Instructions are named in NVIDIA's "CUDA Binary Utilities", "Instruction Set Reference".
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_conv3d.engine.cuda import places

#: Why columns are empty.
NOT_FOUND = "no nvdisasm in CUDA_HOME, in NVIDIA's or Triton's wheels, or on PATH: pip install nvidia-cuda-nvdisasm"

#: The code of a kernel begins.
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),.*$", re.MULTILINE)

_LABEL = re.compile(r"^(\.L\w+):")

#: An instruction after its place and its condition, and where it jumps to; not those whose condition is never true,
#: which the assembler puts before asynchronous copies.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?!@!U?PT )(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)(?:.*`\((\.L\w+)\))?")

#: Multiplications, and the reads of shared memory that feed them.
_PRODUCTS = {"HMMA": "LDSM", "FFMA": "LDS", "DFMA": "LDS"}

#: Bytes that an instruction on memory moves for a thread, by its suffix.
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Code:
    """The machine code of a kernel.

    Attributes:
        all: how often each instruction occurs, by its full name.
        loop: the same within the innermost loop that multiplies most; all of it where no loop multiplies.
    """

    all: Counter[str]
    loop: Counter[str]

    @property
    def ratio(self) -> tuple[str, float] | None:
        """Names of multiplications and reads of shared memory in the main loop, and how many of one for the other."""
        product = max(_PRODUCTS, key=lambda name: count(self.loop, name))
        reads = count(self.loop, _PRODUCTS[product])
        products = count(self.loop, product)
        return (f"{product}:{_PRODUCTS[product]}", products / reads) if reads and products else None

    @property
    def narrow_loads(self) -> int:
        """Loads of at most 2 bytes a thread from global memory, in the main loop."""
        return sum(number for name, number in self.loop.items() if _is(name, "LDG") and width(name) <= 2)

    @property
    def stores(self) -> tuple[int, int] | None:
        """The fewest and the most bytes that a store to global memory moves for a thread; None where there is none."""
        widths = [width(name) for name in self.all if _is(name, "STG")]
        return (min(widths), max(widths)) if widths else None

    @property
    def local(self) -> int:
        """Accesses to a thread's own memory: of spills, and of arrays that are not in registers."""
        return count(self.all, "LDL") + count(self.all, "STL")


def count(found: Mapping[str, int], operation: str) -> int:
    """How often an operation occurs, with whatever suffixes."""
    return sum(number for name, number in found.items() if _is(name, operation))


def width(name: str) -> int:
    """Bytes that this instruction on memory moves for a thread."""
    return next((_BYTES[part] for part in name.split(".") if part in _BYTES), 4)


def _is(name: str, operation: str) -> bool:
    return name.partition(".")[0] == operation


def find_nvdisasm() -> str | None:
    """NVIDIA's disassembler: of a toolkit, of a wheel, or on PATH; None where there is none."""
    folders = [home / "bin" for home in places.homes()]
    folders += [folder for wheel in places.wheels() for folder in wheel.glob("*/bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        folders += [Path(place, "backends", "nvidia", "bin") for place in triton.submodule_search_locations or ()]
    return shutil.which("nvdisasm", path=":".join(map(str, folders))) or shutil.which("nvdisasm")


def disassembled(cubin: bytes) -> Mapping[str, Code] | None:
    """The machine code of each kernel, by its name; None where there is no disassembler.

    Raises:
        RuntimeError: it refuses the code.
    """
    tool = find_nvdisasm()
    if tool is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} refuses the code: {done.stderr.strip()[-2000:]}")
    return read(done.stdout)


def read(listing: str) -> Mapping[str, Code]:
    """The code of each kernel in a listing of `nvdisasm -c`."""
    _, *parts = _SECTION.split(listing)
    return {name: _code(part.splitlines()) for name, part in zip(parts[::2], parts[1::2], strict=True)}


def _code(lines: Sequence[str]) -> Code:
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in lines:
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            labels[label[1]] = len(names)
        elif instruction:
            names.append(instruction[1])
            if instruction[2] and instruction[1].startswith("BRA"):
                jumps.append((len(names), instruction[2]))
    return Code(Counter(names), _main_loop(names, labels, jumps))


def _main_loop(names: Sequence[str], labels: Mapping[str, int], jumps: Sequence[tuple[int, str]]) -> Counter[str]:
    """The instructions of the innermost loop that multiplies most, of all where none does."""
    spans = [(labels[to], end) for end, to in jumps if labels.get(to, end) < end]
    loops = [span for span in spans if _products(names[slice(*span)])]
    inner = [span for span in loops if not any(_within(other, span) for other in loops)]
    most = max(inner, key=lambda span: _products(names[slice(*span)]), default=(0, len(names)))
    return Counter(names[slice(*most)])


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def _products(names: Sequence[str]) -> int:
    found = Counter(names)
    return sum(count(found, operation) for operation in _PRODUCTS)
