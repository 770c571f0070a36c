"""Why CUDA works here, or does not: for `doctor`."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from tvm_conv3d.engine.cuda import nvrtc, toolkit
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.runtime.cuda.driver import CudaError
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.gpu import nearest

#: What TVM's own CUDA runtime loads, which only its tools need.
_RUNTIME = "libcudart.so.13"

#: Of a convolution that is tried.
_WORST_ERROR = 1e-5


def findings() -> list[tuple[str, str]]:
    """What is checked, and what was found."""
    found = [("CUDA, driver and GPUs", _gpus()), ("CUDA, compiler", _compiler()), ("CUDA, TVM's runtime", _runtime())]
    return [*found, *(("CUDA, a convolution", text) for text in _attempts())]


def _attempts() -> list[str]:
    """What comes of a small convolution on the first GPU, where there is one."""
    try:
        if not driver.get().count():
            return []
    except CudaError:
        return []
    rng = np.random.default_rng(0)
    spec = Conv3DSpec(1, (4, 4, 4), 16, 16, (3, 3, 3))
    x, kernel, bias = (rng.standard_normal(s, np.float32) for s in (spec.input_shape, spec.kernel_shape, spec.filters))
    try:
        result = Executor("cuda").convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    except (ValueError, RuntimeError) as error:
        return [f"fails: {error}"]
    off = oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias))
    return [f"{'right' if off < _WORST_ERROR else 'WRONG'}, relative error {off:.1e}"]


def _gpus() -> str:
    try:
        runtime = driver.get()
        count = runtime.count()
        found = [runtime.device(number) for number in range(count)]
    except CudaError as error:
        return f'{error} Compiling for a GPU elsewhere works: target="cuda:sm_90".'
    if not found:
        return "the driver works, but this process sees no GPU; look at CUDA_VISIBLE_DEVICES"
    texts = []
    for device in found:
        try:
            code = f"code for {nearest(device.capability).name}"
        except ValueError as error:
            code = str(error)
        texts.append(f"{device.number}: {device.name}, compute capability {device.capability / 10:.1f}, {code}")
    return "; ".join(texts)


def _compiler() -> str:
    nvcc = toolkit.find_nvcc()
    if nvcc:
        return nvcc
    library = toolkit.find_nvrtc()
    if library:
        missing = ", ".join(nvrtc.missing_headers(library))
        advice = f" for float32 and float64; for half types {missing} is missing, run: pip install "
        return f"NVRTC ({library})" + (advice + nvrtc.packages_for(library) if missing else "")
    return (
        "none: neither nvcc (on PATH, or under CUDA_HOME) nor NVRTC. New shapes can't be compiled for a GPU. Run: "
        f"pip install {nvrtc.PACKAGES[13]}"
    )


def _runtime() -> str:
    places = (_RUNTIME, *(str(home / part / _RUNTIME) for home in _toolkits() for part in ("lib64", "lib")))
    for place in places:
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        if place == _RUNTIME:
            return f"{_RUNTIME} loads"
        return f"{_RUNTIME} is at {place}, but not on the loader's path (LD_LIBRARY_PATH); only TVM's own tools need it"
    return f"{_RUNTIME} is missing; only TVM's own tools need it, not this package"


def _toolkits() -> list[Path]:
    nvcc = toolkit.find_nvcc()
    return [Path(nvcc).resolve().parents[1]] if nvcc else []
