"""Runs a lowered graph: every convolution is a `tvm_conv3d.Conv3D`, the rest is NumPy."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_conv3d import Conv3D
from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.demo.graph import Concat, Convolution, MaxPool, Program, Shape, Step, TransposedConvolution
from tvm_conv3d.demo.transposed import Phases, as_cells, to_phases

#: Told the step and the seconds of its convolution and of all of it.
Observer = Callable[[Step, float, float], None]


@dataclass
class _Layer:
    """A convolution step's layer; `phases` and `padded` belong to a transposed one."""

    conv: Any
    input_shape: Shape
    phases: Phases | None = None
    padded: np.ndarray | None = None


class Network:
    """A program with its layers and its buffers; one thread at a time may run it.

    Args:
        program: the steps.
        threads: threads for what is not a convolution (pooling, copies).
    """

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program = program
        self.threads = max(1, threads)
        self._shapes = {program.input: program.input_shape} | {step.name: step.shape for step in program.steps}
        self._layers = {step.name: layer for step in program.steps if (layer := self._layer(step)) is not None}
        self._unsorted = self._read_by_concats_alone()
        # Kept between runs: fresh memory costs more (page faults) than the copies into it.
        self._buffers = {
            step.name: np.zeros(step.shape, np.float32) for step in program.steps if isinstance(step, Concat | MaxPool)
        }
        self._last_use = {source: step.name for step in program.steps for source in step.sources}

    def run(self, image: np.ndarray, observe: Observer | None = None) -> np.ndarray:
        """The output for one input.

        Args:
            image: float32 of the program's input shape.
            observe: called after each step.

        Raises:
            DemoError: `image` has another shape.
        """
        if image.shape != self.program.input_shape:
            raise DemoError(f"The network takes {self.program.input_shape}. Received: {image.shape}")
        values = {self.program.input: np.ascontiguousarray(image, np.float32)}
        with ThreadPoolExecutor(self.threads) as pool:
            for step in self.program.steps:
                start = time.perf_counter()
                values[step.name], convolving = self._execute(step, values, pool)
                for source in step.sources:
                    if self._last_use[source] == step.name:
                        values.pop(source, None)
                if observe is not None:
                    observe(step, convolving, time.perf_counter() - start)
        last = self.program.steps[-1].name
        # The next run writes into the buffers again.
        return values[last].copy() if last in self._buffers else values[last]

    def is_convolution(self, step: Step) -> bool:
        """Whether the step runs a kernel of this package."""
        return step.name in self._layers

    def is_transposed(self, step: Step) -> bool:
        """Whether the step also pads and interleaves in NumPy."""
        return isinstance(step, TransposedConvolution)

    def plan(self, step: Step) -> Any | None:
        """What is known of a convolution step's kernel (`spec`, `origin`), None for other steps."""
        layer = self._layers.get(step.name)
        return None if layer is None else layer.conv.plan_for(layer.input_shape)

    def _layer(self, step: Step) -> _Layer | None:
        if isinstance(step, Convolution):
            shape = self._shapes[step.sources[0]]
            return _Layer(_build(step, shape, step.kernel, step.bias, step.padding, step.strides, step.dilation), shape)
        if isinstance(step, TransposedConvolution):
            batch, *size, channels = self._shapes[step.sources[0]]
            phases = to_phases(step.kernel, step.strides, step.padding, tuple(size), step.shape[1:4])  # type: ignore[arg-type]
            shape = (batch, *(n + sum(p) for n, p in zip(size, phases.pads, strict=True)), channels)
            bias = None if step.bias is None else np.tile(step.bias, phases.kernel.shape[-1] // step.bias.size)
            conv = _build(step, shape, phases.kernel, bias, "valid")
            return _Layer(conv, shape, phases, np.zeros(shape, np.float32))
        return None

    def _read_by_concats_alone(self) -> set[str]:
        """Transposed convolutions whose cells are sorted by the concatenation that is their only reader."""
        readers: dict[str, list[Step]] = {}
        for step in self.program.steps:
            for source in step.sources:
                readers.setdefault(source, []).append(step)
        return {
            step.name
            for step in self.program.steps
            if isinstance(step, TransposedConvolution)
            and [type(reader) for reader in readers.get(step.name, [])] == [Concat]
        }

    def _execute(self, step: Step, values: dict[str, np.ndarray], pool: ThreadPoolExecutor) -> tuple[np.ndarray, float]:
        """The step's value and the seconds of its convolution."""
        sources = [values[name] for name in step.sources]
        layer = self._layers.get(step.name)
        if layer is not None and layer.phases is not None:
            return self._transposed(step, layer, sources[0], pool)
        if layer is not None:
            start = time.perf_counter()
            return layer.conv(sources[0]), time.perf_counter() - start
        buffer = self._buffers[step.name]
        if isinstance(step, MaxPool):
            self._in_slabs(pool, step.shape[1], _pool_slab, step.window, sources[0], buffer)
        elif isinstance(step, Concat):
            self._concat(step, sources, buffer, pool)
        return buffer, 0.0

    def _transposed(
        self, step: Step, layer: _Layer, source: np.ndarray, pool: ThreadPoolExecutor
    ) -> tuple[np.ndarray, float]:
        assert layer.phases is not None and layer.padded is not None
        inner = tuple(slice(p.before, p.before + n) for p, n in zip(layer.phases.pads, source.shape[1:4], strict=True))
        layer.padded[(slice(None), *inner)] = source
        start = time.perf_counter()
        phases = layer.conv(layer.padded)
        convolving = time.perf_counter() - start
        if step.name in self._unsorted:
            return phases, convolving
        out = np.empty(step.shape, np.float32)
        self._in_slabs(pool, step.shape[1], _weave_slab, layer.phases, phases, out)
        return out, convolving

    def _concat(self, step: Step, sources: list[np.ndarray], buffer: np.ndarray, pool: ThreadPoolExecutor) -> None:
        """All sources slab by slab: a cache line of the buffer that two of them share is written while it is near."""
        parts: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        channel = 0
        for name, source in zip(step.sources, sources, strict=True):
            into = buffer[..., channel : channel + self._shapes[name][-1]]
            channel += into.shape[-1]
            if name in self._unsorted:
                parts.append((_weave_slab, (self._layers[name].phases, source, into)))
            else:
                parts.append((_copy_slab, (source, into)))
        self._in_slabs(pool, step.shape[1], _all_parts, parts)

    def _in_slabs(self, pool: ThreadPoolExecutor, depth: int, work: Callable[..., None], *arguments: Any) -> None:
        """`work(sample, depth index, *arguments)` for each slab of depth: slabs fit into cache."""
        batch = self.program.input_shape[0]
        jobs = [(sample, index) for sample in range(batch) for index in range(depth)]
        share = -(-len(jobs) // self.threads)

        def some(first: int) -> None:
            for sample, index in jobs[first : first + share]:
                work(sample, index, *arguments)

        list(pool.map(some, range(0, len(jobs), share)))


def _build(
    step: Convolution | TransposedConvolution,
    input_shape: Shape,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    padding: str,
    strides: tuple[int, ...] = (1, 1, 1),
    dilation: tuple[int, ...] = (1, 1, 1),
) -> Conv3D:
    conv = Conv3D(
        kernel.shape[-1],
        kernel.shape[:3],
        strides=strides,
        padding=padding,
        data_format="channels_last",
        dilation_rate=dilation,
        activation=step.activation,
        use_bias=bias is not None,
        dtype="float32",
        name=step.name.replace("/", "_"),
    )
    conv.build(input_shape)
    conv.set_weights([kernel] if bias is None else [kernel, bias])
    return conv


def _pool_slab(sample: int, index: int, window: tuple[int, int, int], source: np.ndarray, out: np.ndarray) -> None:
    depth, height, width = window
    slab = np.maximum.reduce(source[sample, index * depth : (index + 1) * depth])
    rows = np.maximum.reduce([slab[h::height] for h in range(height)])
    np.maximum.reduce([rows[:, w::width] for w in range(width)], out=out[sample, index])


def _weave_slab(sample: int, index: int, phases: Phases, source: np.ndarray, out: np.ndarray) -> None:
    phases.weave(source[sample], index, out[sample, index])


def _copy_slab(sample: int, index: int, source: np.ndarray, out: np.ndarray) -> None:
    as_cells(out[sample, index])[...] = as_cells(source[sample, index])


def _all_parts(sample: int, index: int, parts: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    for work, arguments in parts:
        work(sample, index, *arguments)
