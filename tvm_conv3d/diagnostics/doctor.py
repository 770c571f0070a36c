"""A look at the installation: versions, target, cache, and the time that each part of a first call takes."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np

from tvm_conv3d.diagnostics.cuda_doctor import findings
from tvm_conv3d.engine import cache
from tvm_conv3d.engine.artifact import PINNED, artifact_key, check_versions
from tvm_conv3d.engine.build import compile_plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import executor, interchange, loader, threads
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec, same_padding
from tvm_conv3d.support.folders import cache_root
from tvm_conv3d.target.cpu import cpu_traits
from tvm_conv3d.target.resolve import resolve, target_key

T = TypeVar("T")

_SHAPE = (1, 16, 28, 28, 64)
_WORST_ERROR = 1e-5


def examine() -> int:
    """Prints the findings; returns 0 when all is well, 1 otherwise."""
    _line("python", platform.python_version())
    for name in (*PINNED, "numpy", "tvm-conv3d"):
        _line(name, metadata.version(name))
    try:
        check_versions()
    except RuntimeError as problem:
        _line("PROBLEM", str(problem))
        return 1
    start = time.perf_counter()
    target = resolve(None, threads.get_num_threads())
    _line("import of TVM", f"{1e3 * (time.perf_counter() - start):.0f} ms")
    traits = cpu_traits(target)
    _line("target", f"{target_key(target)}: {traits.vector_bits}-bit vectors, {traits.registers} registers")
    _line("caches", f"L1 {traits.l1 >> 10} KiB, L2 {traits.l2 >> 10} KiB, L3 {traits.l3 >> 10} KiB")
    _line("threads", f"{threads.get_num_threads()} of {threads.owner()}")
    modules = cache_root() / "modules"
    count = sum(1 for path in modules.glob("*/meta.json")) if modules.is_dir() else 0
    _line("cache", f"{modules}, {count} compiled convolutions")
    for name, text in findings():
        _line(name, text)
    error = _measure()
    return 0 if error < _WORST_ERROR else 1


def _measure() -> float:
    """Times the parts of a call on a common layer, in a cache of its own; returns the relative error."""
    kernel = (3, 3, 3)
    size = _SHAPE[1:4]
    spec = Conv3DSpec(1, size, 64, 64, kernel, pads=same_padding(size, kernel, (1, 1, 1), (1, 1, 1)))
    target = resolve(None, threads.get_num_threads())
    plan = make_plan(spec, target)
    artifact, compiling = _timed(lambda: compile_plan(plan, target))
    key = artifact_key(plan, target)
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        cache.store(key, artifact, {}, Path(folder))
        loader.link(artifact)  # the first link of a process also starts the linker
        _, loading = _timed(lambda: loader.link(cache.load(key, Path(folder)) or artifact))
    _line("compile of a new shape", f"{1e3 * compiling:.0f} ms (goal: under 1000)")
    _line("load of a cached one", f"{1e3 * loading:.1f} ms (goal: under 30)")
    overhead = _median_call(Conv3D(1, 1), np.zeros((1, 2, 2, 2, 1), np.float32))
    _line("call overhead", f"{1e6 * overhead:.0f} us (goal: under 100)")

    rng = np.random.default_rng(0)
    x = rng.standard_normal(_SHAPE).astype(np.float32)
    weights = (0.05 * rng.standard_normal(spec.kernel_shape)).astype(np.float32)
    bias = rng.standard_normal(spec.filters).astype(np.float32)
    result = executor.Executor().convolve(spec, interchange.wrap(x), Weights(weights, bias, 0))
    error = oracle.relative_error(result, oracle.convolve(spec, x, weights, bias))
    layer = Conv3D(64, 3, padding="same")
    seconds = _median_call(layer, x, rounds=20)
    _line("a common layer", f"{spec.key()}")
    _line("", f"{1e3 * seconds:.2f} ms, {spec.gflop / seconds:.0f} GFLOP/s, relative error {error:.1e}")
    return error


def _median_call(layer: Conv3D, x: np.ndarray, rounds: int = 500) -> float:
    layer(x)
    return statistics.median(_timed(lambda: layer(x))[1] for _ in range(rounds))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _line(name: str, text: str) -> None:
    print(f"{name:24s} {text}")
