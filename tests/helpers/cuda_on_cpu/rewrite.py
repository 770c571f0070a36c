"""Generated CUDA source -> C++ against device/cuda_on_cpu.h: pointers and arrays become their checked stand-ins."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The last lines of the preamble that TVM puts before every module; what it declares, the header declares too.
_PREAMBLE_END = "#define ushort unsigned short\n#endif\n"
# Functions of the schedules' own, which TVM puts into that preamble.
_OWN_FUNCTION = re.compile(
    r"^template <[^\n]*>\n__device__ [^\n]* tvm_conv3d_\w+\([^\n]*\n.*?\n\}\n", re.DOTALL | re.MULTILINE
)
_ASSEMBLY = re.compile(r"\b(asm|__asm__)\b")
_KERNEL = re.compile(
    r'(?:extern\s+"C"\s+)?__global__\s+(?:__\w+__\([^)]*\)\s+)?void\s+'
    r"(?:__\w+__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)\s*([;{])"
)
_PARAMETER = re.compile(r"^(?:const\s+)?([\w ]+?)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)$")
_ALIGN = r"(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
_DYNAMIC_SHARED = re.compile(rf"extern\s+__shared__\s+{_ALIGN}([\w ]+?)\s+(\w+)\[\];")
_SHARED = re.compile(rf"__shared__\s+{_ALIGN}([\w ]+?)\s+(\w+)\[(\d+)\];")
_LOCAL = re.compile(
    rf"^(\s*){_ALIGN}(?!return\b)((?:signed |unsigned )?[A-Za-z_][\w:]*(?:<[^<>]*>)?)\s+(\w+)\[(\d+)\];", re.MULTILINE
)
_CAST = re.compile(r"\(\s*(?:volatile\s+|const\s+)?([A-Za-z_]\w*(?: \w+)*)\s*\*\s*\)\s*(?:(\()|(\w+))")
_POINTER_VARIABLE = re.compile(r"^(\s*)(?:const\s+)?\w+\s*\*\s*(?:__restrict__\s+)?(\w+) = ", re.MULTILINE)
# What TVM writes for cp.async: helpers around inline assembly. The header has the same by other names.
_COPY_HELPER = re.compile(
    r"__forceinline__ __device__ void (?:ptx_cp_async_legacy_\w+|tvm_builtin_ptx_cp_async_(?:commit|wait)_group_\w+)"
    r"\([^)]*\) \{\n.*?\n\}\n",
    re.DOTALL,
)
_COPY_CALLS = (
    (re.compile(r"\bptx_cp_async_legacy_(?:pred_)?c[ag]_(\d+)_(\d+)_(\d+)\("), r"cuda_on_cpu::copy_async<\1, \2, \3>("),
    (re.compile(r"\btvm_builtin_ptx_cp_async_commit_group_\w+\(\)"), "cuda_on_cpu::commit_copies()"),
    (re.compile(r"\btvm_builtin_ptx_cp_async_wait_group_\w*?(\d+)\(\)"), r"cuda_on_cpu::wait_copies(\1)"),
)
_SYNCHRONISES = re.compile(
    r"(?P<block>__syncthreads\(\))|(?P<warp>__syncwarp\([^()]*\))"
    r"|(?P<wmma>nvcuda::wmma::\w+_sync\()|__(?P<shuffle>shfl\w*_sync)\("
)
# Vector types have the size of their elements here: a granule is what two threads may write side by side.
_ELEMENT_BYTES = (
    (re.compile(r"\b(?:u?char\d?|signed char|unsigned char|u?int8_t|bool)\b"), 1),
    (re.compile(r"\b(?:half\d?|__half|(?:__)?nv_bfloat16\d?|u?short\d?|u?int16_t)\b"), 2),
)


class UnsupportedKernelError(Exception):
    """The source has something that cannot run on the CPU; the message says what, and where."""


@dataclass(frozen=True)
class Kernel:
    """One ``__global__`` function: what a launch must know about it."""

    name: str
    parameters: tuple[str, ...]
    synchronises: bool  # has barriers or warp-level calls: its threads need stacks of their own
    granule_bytes: int  # of the smallest element in shared memory


@dataclass(frozen=True)
class RewrittenSource:
    kernels: tuple[Kernel, ...]
    code: str  # C++; kernel `k` is entered by the C function `<prefix>_<k>`


def rewrite(source: str, prefix: str) -> RewrittenSource:
    """Rewrite generated CUDA source. All its names go into the namespace `prefix`.

    Raises:
        UnsupportedKernelError: inline assembly, a parameter of an unknown form, or no kernel at all.
    """
    preamble, end, body = source.partition(_PREAMBLE_END)
    body = "".join(dict.fromkeys(_OWN_FUNCTION.findall(preamble))) + body if end else source
    body = re.sub(r"^\s*#\s*(include|if|ifdef|ifndef|else|elif|endif|define|undef)\b.*$", "", body, flags=re.MULTILINE)
    body = _COPY_HELPER.sub("", body)
    assembly = _ASSEMBLY.search(body)
    if assembly:
        line = body[body.rfind("\n", 0, assembly.start()) + 1 :].lstrip().partition("\n")[0]
        raise UnsupportedKernelError(f"inline assembly cannot run on the CPU. Received: {line}")
    matches = list(_KERNEL.finditer(body))
    definitions = [match for match in matches if match[3] == "{"]
    if not definitions:
        raise UnsupportedKernelError("the source has no __global__ function")
    parts, kernels, entries = [], [], []
    position = 0
    for match in matches:
        parts.append(_rewrite_code(body[position : match.start()])[0])
        position = match.end()
        if match[3] == ";":
            continue
        following = [other.start() for other in matches if other.start() > match.start()]
        position = following[0] if following else len(body)
        code, synchronises = _rewrite_code(body[match.end() : position])
        parameters = [_parameter(text) for text in match[2].split(",")]
        kernels.append(Kernel(match[1], tuple(name for _, _, name in parameters), synchronises, _granule_bytes(body)))
        parts.append(f"static void {match[1]}({', '.join(_declaration(*p) for p in parameters)}) {{{code}")
        entries.append(_entry(prefix, match[1], parameters))
    code = f"namespace {prefix} {{\n" + "".join(parts) + "\n}\n" + "".join(entries)
    return RewrittenSource(tuple(kernels), code)


def without_barrier(source: str, ordinal: int) -> str:
    """The source without its n-th ``__syncthreads()``, counted from 1: a race, unless the barrier was needless.

    Raises:
        ValueError: there is no such barrier.
    """
    pieces = source.split("__syncthreads();")
    if not 1 <= ordinal < len(pieces):
        raise ValueError(f"the source has {len(pieces) - 1} barriers. Received: {ordinal}")
    return "__syncthreads();".join(
        [*pieces[: ordinal - 1], pieces[ordinal - 1] + pieces[ordinal], *pieces[ordinal + 1 :]]
    )


def _parameter(text: str) -> tuple[str, bool, str]:
    match = _PARAMETER.match(text.strip())
    if not match:
        raise UnsupportedKernelError(f"a kernel's parameter of an unknown form. Received: {text.strip()}")
    return match[1], bool(match[2]), match[3]


def _declaration(ctype: str, pointer: bool, name: str) -> str:
    return f"cuda_on_cpu::Global<{ctype}> {name}" if pointer else f"{ctype} {name}"


def _entry(prefix: str, kernel: str, parameters: list[tuple[str, bool, str]]) -> str:
    arguments = ", ".join(
        f"{{a[{i}], 0}}" if pointer else f"*reinterpret_cast<const {ctype}*>(a[{i}]->data)"
        for i, (ctype, pointer, _) in enumerate(parameters)
    )
    return f'extern "C" void {prefix}_{kernel}(cuda_on_cpu::Buffer* const* a) {{ {prefix}::{kernel}({arguments}); }}\n'


def _granule_bytes(body: str) -> int:
    """Bytes of the smallest element that the module may put into shared memory: too few are slower, never wrong."""
    types = [match[1] for pattern in (_SHARED, _CAST) for match in pattern.finditer(body)]
    # Dynamic shared memory is declared as bytes, and used as such only where no cast comes first.
    types += [m[1] for m in _DYNAMIC_SHARED.finditer(body) if re.search(rf"\b{m[2]}\[(?!\])", body)]
    return next((size for pattern, size in _ELEMENT_BYTES if pattern.search(" ".join(types))), 4)


def _rewrite_code(code: str) -> tuple[str, bool]:
    """The code, and whether threads wait for one another in it."""
    slots = iter(range(1 << 30))
    code = _DYNAMIC_SHARED.sub(
        lambda m: f'auto {m[2]} = cuda_on_cpu::declare_dynamic_shared<{m[1]}>("{_shown(m[2])}");', code
    )
    code = _SHARED.sub(
        lambda m: f'auto {m[2]} = cuda_on_cpu::declare_shared<{m[1]}>({next(slots)}, {m[3]}, "{_shown(m[2])}");',
        code,
    )
    code = _LOCAL.sub(lambda m: f'{m[1]}cuda_on_cpu::LocalArray<{m[2]}, {m[4]}> {m[3]}("{_shown(m[3])}");', code)
    code = _POINTER_VARIABLE.sub(r"\1auto \2 = ", code)
    code = _CAST.sub(
        lambda m: f"cuda_on_cpu::cast_to<{m[1]}>(" + ("" if m[2] else f"{m[3]})"),
        code,
    )
    for pattern, replacement in _COPY_CALLS:
        code = pattern.sub(replacement, code)
    sites = iter(range(1, 1 << 30))
    code, count = _SYNCHRONISES.subn(lambda m: _synchronise(m, next(sites)), code)
    return code, count > 0


def _synchronise(match: re.Match[str], site: int) -> str:
    if match["block"]:
        return f"cuda_on_cpu::block_barrier({site})"
    if match["warp"]:
        return f"cuda_on_cpu::warp_barrier({site})"
    if match["wmma"]:
        return f"{match['wmma']}{site}, "
    return f"cuda_on_cpu_{match['shuffle']}({site}, "


def _shown(name: str) -> str:
    return name.removesuffix("_ptr")
