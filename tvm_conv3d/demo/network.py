"""Runs a lowered graph: convolutions, the transposed ones included, are kernels of this package, the rest is NumPy."""

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
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import DATA_GRADIENT, NO_PADS, Conv3DSpec, Triple, same_padding

#: Told the step and the seconds of its convolution and of all of it.
Observer = Callable[[Step, float, float], None]


@dataclass(frozen=True)
class _Layer:
    """What computes a convolution step.

    Attributes:
        run: the step's value of its source.
        plan: tells how.
    """

    run: Callable[[np.ndarray], Any]
    plan: Callable[[], Any]


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

    def plan(self, step: Step) -> Any | None:
        """What is known of a convolution step's kernel (`spec`, `origin`), None for other steps."""
        layer = self._layers.get(step.name)
        return None if layer is None else layer.plan()

    def _layer(self, step: Step) -> _Layer | None:
        if isinstance(step, Convolution):
            shape = self._shapes[step.sources[0]]
            conv = _build(step, shape)
            return _Layer(conv, lambda: conv.plan_for(shape))
        if isinstance(step, TransposedConvolution):
            spec, executor = transposed_spec(step, self._shapes[step.sources[0]]), Executor()
            return _Layer(
                lambda x: executor.convolve(spec, interchange.wrap(x), Weights(step.kernel, step.bias, 0)),
                lambda: executor.plan_for(spec),
            )
        return None

    def _execute(self, step: Step, values: dict[str, np.ndarray], pool: ThreadPoolExecutor) -> tuple[np.ndarray, float]:
        """The step's value and the seconds of its convolution."""
        sources = [values[name] for name in step.sources]
        layer = self._layers.get(step.name)
        if layer is not None:
            start = time.perf_counter()
            return layer.run(sources[0]), time.perf_counter() - start
        buffer = self._buffers[step.name]
        if isinstance(step, MaxPool):
            self._in_slabs(pool, step.shape[1], _pool_slab, step.window, sources[0], buffer)
        elif isinstance(step, Concat):
            self._concat(step.shape[1], sources, buffer, pool)
        return buffer, 0.0

    def _concat(self, depth: int, sources: list[np.ndarray], buffer: np.ndarray, pool: ThreadPoolExecutor) -> None:
        """All sources slab by slab: a cache line of the buffer that two of them share is written while it is near."""
        parts: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        channel = 0
        for source in sources:
            into = buffer[..., channel : channel + source.shape[-1]]
            channel += into.shape[-1]
            parts.append((_copy_slab, (source, into)))
        self._in_slabs(pool, depth, _all_parts, parts)

    def _in_slabs(self, pool: ThreadPoolExecutor, depth: int, work: Callable[..., None], *arguments: Any) -> None:
        """`work(sample, depth index, *arguments)` for each slab of depth: slabs fit into cache."""
        batch = self.program.input_shape[0]
        jobs = [(sample, index) for sample in range(batch) for index in range(depth)]
        share = -(-len(jobs) // self.threads)

        def some(first: int) -> None:
            for sample, index in jobs[first : first + share]:
                work(sample, index, *arguments)

        list(pool.map(some, range(0, len(jobs), share)))


def transposed_spec(step: TransposedConvolution, input_shape: Shape) -> Conv3DSpec:
    """The problem that a transposed convolution is.

    Args:
        step: its kernel's layout is the spec's.
        input_shape: of its source.

    Raises:
        DemoError: no convolution with these arguments takes the step's output to its input.
    """
    batch, *size, channels = input_shape
    out_size: Triple = (step.shape[1], step.shape[2], step.shape[3])
    taps: Triple = step.kernel.shape[:3]
    pads = same_padding(out_size, taps, step.strides, (1, 1, 1)) if step.padding == "same" else NO_PADS
    spec = Conv3DSpec(
        batch,
        out_size,
        channels=step.kernel.shape[3],
        filters=channels,
        kernel=taps,
        strides=step.strides,
        pads=pads,
        bias=step.bias is not None,
        post_ops=(step.activation,),
        direction=DATA_GRADIENT,
    )
    if spec.out_size != tuple(size):
        raise DemoError(
            f"A `{step.padding}` convolution takes {out_size} to {spec.out_size}, not to the input's {tuple(size)}."
        )
    return spec


def _build(step: Convolution, input_shape: Shape) -> Conv3D:
    kernel, bias = step.kernel, step.bias
    conv = Conv3D(
        kernel.shape[-1],
        kernel.shape[:3],
        strides=step.strides,
        padding=step.padding,
        data_format="channels_last",
        dilation_rate=step.dilation,
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


def _copy_slab(sample: int, index: int, source: np.ndarray, out: np.ndarray) -> None:
    _as_cells(out[sample, index])[...] = _as_cells(source[sample, index])


def _as_cells(array: np.ndarray) -> np.ndarray:
    """A view without the axis of channels: NumPy moves opaque cells twice as fast as the numbers in them."""
    return array.view(np.dtype((np.void, array.itemsize * array.shape[-1])))[..., 0]


def _all_parts(sample: int, index: int, parts: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    for work, arguments in parts:
        work(sample, index, *arguments)
