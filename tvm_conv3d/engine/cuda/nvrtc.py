"""NVRTC, NVIDIA's compiler as a library: for machines without nvcc; needs no GPU.

The library alone compiles float32 and float64. Half types include headers of CUDA, which come with a toolkit or with
wheels of their own.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from tvm_conv3d.engine.cuda import places

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")

#: Wheels with the library and all headers, by the CUDA that they are of.
PACKAGES = {
    12: "nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-cccl-cu12 nvidia-cuda-nvcc-cu12",
    13: "nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt",
}

#: Headers that half types need, one of each wheel.
_OF_HALVES = ("cuda_fp16.h", "nv/target", "crt/mma.h")

_MISSING = re.compile(r"(?:can|could) ?not open source file \"([^\"]+)\"")

#: What TVM's sources include and libcu++ would give: names that they list, of which kernels use the integers only.
_OWN_HEADERS = {
    "cuda/std/cstdint": """
namespace cuda { namespace std {
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
} }
""",
    "cuda/std/type_traits": """
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class> struct is_integral; template <class> struct is_floating_point;
template <class> struct is_signed; template <class> struct is_unsigned;
template <bool, class = void> struct enable_if; template <bool, class, class> struct conditional;
} }
""",
}


@functools.cache
def find_nvrtc() -> str | None:
    """The name or path by which NVRTC loads, None where it does not."""
    folders = [home / part for home in places.homes() for part in ("lib64", "lib")]
    paths = [str(folder / name) for folder in folders for name in _NAMES]
    paths += [str(path) for folder in places.wheels() for name in _NAMES for path in folder.glob(f"*/lib/{name}")]
    for name in (*_NAMES, *paths):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def header_folders(library: str) -> list[Path]:
    """Folders with CUDA's headers, those that belong to `library` first: other versions' may not fit."""
    beside = Path(library).parent.parent
    found = [beside / "include"] if Path(library).is_absolute() else []
    found += [home / "include" for home in places.homes()]
    found += [path for folder in places.wheels() for path in sorted(folder.glob("*/include"))]
    # CUDA 13 has libcu++ in a folder of its own
    both = [path for folder in found for path in (folder, folder / "cccl")]
    return [path for path in dict.fromkeys(both) if path.is_dir()]


def missing_headers(library: str) -> list[str]:
    """Headers that half types need and that are not here."""
    folders = header_folders(library)
    return [name for name in _OF_HALVES if not any((folder / name).is_file() for folder in folders)]


def packages_for(library: str) -> str:
    """Wheels with all that `library` needs, as arguments of pip."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return PACKAGES.get(major.value, PACKAGES[13])


def compile_cubin(library: str, source: str, arch: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Machine code of `source` for `arch`, and what the compiler said.

    Args:
        library: what :func:`find_nvrtc` found.
        source: CUDA C++.
        arch: such as "sm_90".
        options: more of them.

    Raises:
        RuntimeError: NVRTC refuses the source; says which wheels to install where a header is missing.
    """
    nvrtc = ctypes.CDLL(library)
    names, texts = ([text.encode() for text in part] for part in (_OWN_HEADERS, _OWN_HEADERS.values()))
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", len(names), _strings(texts), _strings(names)
    )
    if created:
        raise RuntimeError(f"{library} can't be used: nvrtcCreateProgram fails with error {created}.")

    def text_of(size_name: str, text_name: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, size_name)(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, text_name)(program, buffer)
        return buffer.raw

    try:
        folders = [f"-I{folder}" for folder in header_folders(library)]
        every = [option.encode() for option in (f"--gpu-architecture={arch}", "--std=c++17", *options, *folders)]
        failed = nvrtc.nvrtcCompileProgram(program, len(every), _strings(every))
        log = text_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if failed:
            raise RuntimeError(_refusal(library, arch, log))
        return text_of("nvrtcGetCUBINSize", "nvrtcGetCUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _refusal(library: str, arch: str, log: str) -> str:
    missing = _MISSING.search(log)
    if missing is None:
        return f"NVRTC refuses the source for {arch}: {log[-2000:]}"
    return (
        f"NVRTC ({library}) finds no header {missing[1]}, which half types need. Set CUDA_HOME to a CUDA toolkit, or "
        f"run: pip install {packages_for(library)}"
    )


def _strings(texts: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*texts)
