"""What the first calls of new sizes take, of a layer that was called with another size before, with nothing kept."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tvm_conv3d.bench import report
from tvm_conv3d.bench.peers.ours import Ours
from tvm_conv3d.reference import oracle, problem
from tvm_conv3d.reference.layers import Layer
from tvm_conv3d.spec import Conv3DSpec, Triple, same_padding
from tvm_conv3d.support import folders
from tvm_conv3d.support.dtypes import numpy_dtype

#: The layer that is taken where none is named.
USUAL = "n1_i24x24x24x16_o32_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_bias_relu"

#: Cells along an axis of a new size.
MIN_EXTENT, MAX_EXTENT = 12, 40

#: Calls of each size.
CALLS = ("first", "second", "third")


@dataclass(frozen=True)
class Calls:
    """The calls of one size: seconds and relative error of each, and the algorithm of the best plan."""

    spec: Conv3DSpec
    seconds: tuple[float, ...]
    errors: tuple[float, ...]
    algorithm: str

    @property
    def right(self) -> bool:
        return max(self.errors) <= problem.TOLERANCE[self.spec.dtype]


def run(layers: Sequence[Layer], count: int, seed: int, threads: int) -> int:
    """Times and prints the first calls of `count` new sizes of each layer; 0 if all results were right."""
    with folders.empty_root():
        ours = Ours(threads)
        print("\n".join(report.setting(threads, 1, 0.0, ours.versions()).where()), flush=True)
        print("seconds of the calls of new sizes, of a layer that was called with another size; nothing was cached")
        right = True
        for layer in layers:
            found = list(_calls(ours, layer, draw(layer, count, seed)))
            print("\n" + "\n".join(table(layer, found)), flush=True)
            right = right and all(calls.right for calls in found)
    return 0 if right else 1


def draw(layer: Layer, count: int, seed: int) -> list[Conv3DSpec]:
    """The layer's problem in `count` other sizes; the same for the same seed."""
    rng, spec = random.Random(seed), layer.spec
    sizes: dict[Triple, None] = {}
    while len(sizes) < count:
        depth, height, width = (rng.randint(max(MIN_EXTENT, window), MAX_EXTENT + window) for window in spec.window)
        if (depth, height, width) != spec.size:
            sizes[depth, height, width] = None
    specs = []
    for size in sizes:
        same = same_padding(size, spec.kernel, spec.strides, spec.dilation)
        specs.append(replace(spec, size=size, pads=same if layer.padding == "same" else spec.pads))
    return specs


def table(layer: Layer, found: Sequence[Calls]) -> list[str]:
    """Aligned lines: a row for each size, then median and worst; a star marks numbers that the oracle refused."""
    width = max(len("median"), *(len(_size(calls)) for calls in found))
    lines = [layer.spec.key(), f"{'size':{width}}" + "".join(f"{name:>9}" for name in CALLS) + "  best plan"]
    for calls in found:
        marked = calls.algorithm if calls.right else "wrong*"
        lines.append(f"{_size(calls):{width}}" + "".join(f"{s:9.3f}" for s in calls.seconds) + f"  {marked}")
    for title, summary in (("median", statistics.median), ("worst", max)):
        figures = (summary(numbers) for numbers in zip(*(calls.seconds for calls in found), strict=True))
        lines.append(f"{title:{width}}" + "".join(f"{figure:9.3f}" for figure in figures))
    return lines


def _size(calls: Calls) -> str:
    return "x".join(map(str, calls.spec.size))


def _calls(ours: Ours, layer: Layer, specs: Sequence[Conv3DSpec]) -> Iterator[Calls]:
    """The calls of each size, after those of the layer's own."""
    convolution = ours.layer_of(layer.spec)
    for spec in [layer.spec, *specs]:
        with problem.scratch() as folder:
            data = problem.make(spec, Path(folder))
            x, kernel, bias = (np.load(Path(folder) / f"{name}.npy") for name in ("x", "kernel", "bias"))
        x = x.astype(numpy_dtype(spec.dtype))
        if not convolution.built:
            convolution.build(x.shape)
        convolution.set_weights([kernel, bias] if spec.bias else [kernel])
        seconds, errors = [], []
        for _ in CALLS:
            before = time.perf_counter()
            result = convolution(x)
            seconds.append(time.perf_counter() - before)
            values = problem.values_at(np.asarray(result), data.positions, spec.data_format)
            errors.append(oracle.relative_error(values, data.expected))
        if spec is not layer.spec:
            algorithm = convolution.plan_for(x.shape).algorithm
            yield Calls(spec, tuple(seconds), tuple(errors), algorithm)
