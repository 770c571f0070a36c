"""What is computed: a frozen, explicit description of one 3-D convolution.

A :class:`Conv3DSpec` names a problem completely and says nothing of how it is solved. Its one-line
:meth:`~Conv3DSpec.key` is the only identity of a problem in records, logs, file names, benchmark
tables, error messages and reproduction commands (as oneDNN's benchdnn descriptors are).

Never holds: how it is done, for which machine.
Entry points: `Conv3DSpec`, `post_ops.PostOp`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tvm_conv3d.spec import key as spec_key
from tvm_conv3d.spec import post_ops as chains
from tvm_conv3d.spec.post_ops import ADD

Triple = tuple[int, int, int]

CHANNELS_LAST = "channels_last"
CHANNELS_FIRST = "channels_first"

#: Element types of the tensors; half types accumulate in float32.
DTYPES = ("float32", "float64", "float16", "bfloat16")

FORWARD = "forward"
DATA_GRADIENT = "data_gradient"
WEIGHT_GRADIENT = "weight_gradient"


#: Elements of the input and of the output, and cells of them along an axis, at most: loops count in 32 bits, their
#: products in 64.
MOST_ELEMENTS, MOST_CELLS = 1 << 40, (1 << 31) - 1


class Pads(NamedTuple):
    """Zero cells before and after one axis; where negative, cells of the input that are cropped."""

    before: int
    after: int


NO_PADS = (Pads(0, 0), Pads(0, 0), Pads(0, 0))


def check_triple(name: str, value: Sequence[int], least: int = 1) -> Triple:
    """Three numbers, of depth, height and width.

    Raises:
        ValueError: there are more or fewer, or one is less than `least`.
    """
    numbers = tuple(int(v) for v in value)
    if len(numbers) != 3 or min(numbers) < least:
        raise ValueError(f"`{name}` must be three integers of at least {least}. Received: {value}")
    return numbers


def same_padding(size: Triple, kernel: Triple, strides: Triple, dilation: Triple) -> tuple[Pads, Pads, Pads]:
    """Keras's `same` pads: output ceil(n / stride), the odd cell behind.

    Args:
        size: input depth, height, width in cells.
        kernel: taps per axis.
        strides: step of the window per axis.
        dilation: distance of taps per axis.

    Returns:
        (before, after) for depth, height and width.
    """

    def one(n: int, k: int, s: int, d: int) -> Pads:
        out = -(-n // s)
        total = max(0, (out - 1) * s + (k - 1) * d + 1 - n)
        return Pads(total // 2, total - total // 2)

    depth, height, width = (one(*axis) for axis in zip(size, kernel, strides, dilation, strict=True))
    return depth, height, width


class Dtypes(NamedTuple):
    """Element types of a problem's tensors, and of its sums."""

    input: str
    weights: str
    output: str
    accumulator: str


@dataclass(frozen=True)
class Convolution:
    """What :class:`Conv3DSpec` and its canonical form have in common: sizes of a forward convolution, and its types.

    No function takes one: they take the one or the other. Fields are explained at :class:`Conv3DSpec`.
    """

    batch: int
    size: Triple
    channels: int
    filters: int
    kernel: Triple
    strides: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    pads: tuple[Pads, Pads, Pads] = NO_PADS
    groups: int = 1
    data_format: str = CHANNELS_LAST
    dtype: str = "float32"
    bias: bool = True
    post_ops: tuple[str, ...] = ()
    weights_dtype: str | None = None
    output_dtype: str | None = None

    @functools.cached_property
    def window(self) -> Triple:
        """Cells covered by the dilated kernel along each axis."""
        d, h, w = ((k - 1) * dil + 1 for k, dil in zip(self.kernel, self.dilation, strict=True))
        return d, h, w

    @functools.cached_property
    def out_size(self) -> Triple:
        """Depth, height, width of the forward output."""
        return self._windows(self.size)

    @functools.cached_property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape(self.size, self.channels)

    @functools.cached_property
    def output_shape(self) -> tuple[int, ...]:
        return self._shape(self.out_size, self.filters)

    @functools.cached_property
    def kernel_shape(self) -> tuple[int, ...]:
        """Keras's layout: (kd, kh, kw, channels / groups, filters)."""
        return (*self.kernel, self.group_channels, self.filters)

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def group_filters(self) -> int:
        return self.filters // self.groups

    @functools.cached_property
    def dtypes(self) -> Dtypes:
        """Element types of input, weights and output, and of the sums: float64 where any of them is."""
        tensors = (self.dtype, self.weights_dtype or self.dtype, self.output_dtype or self.dtype)
        return Dtypes(*tensors, "float64" if "float64" in tensors else "float32")

    @property
    def accumulator(self) -> str:
        """Element type of the sums."""
        return self.dtypes.accumulator

    @functools.cached_property
    def residual(self) -> bool:
        """Whether there is a residual operand, of the shape and type of the output."""
        return ADD in self.post_ops

    @functools.cached_property
    def empty(self) -> bool:
        """True when the output has no element."""
        return 0 in self.output_shape

    @functools.cached_property
    def pointwise(self) -> tuple[bool, bool, bool]:
        """Along which axes kernel and stride are 1 and nothing is padded: a cell sees its own input cell only."""
        depth, height, width = (
            kernel == stride == 1 and pads == (0, 0)
            for kernel, stride, pads in zip(self.kernel, self.strides, self.pads, strict=True)
        )
        return depth, height, width

    def live_windows(self, axis: int, tap: int) -> int:
        """In how many of an axis's windows a tap lies on the input, undilated."""
        stride, cells = self.strides[axis], self.out_size[axis]
        offset = tap * self.dilation[axis] - self.pads[axis].before
        first = max(0, -(offset // stride))
        last = min(cells - 1, (self.size[axis] - 1 - offset) // stride)
        return max(0, last - first + 1)

    def _windows(self, size: Triple) -> Triple:
        """How many windows an input of `size` has along each axis."""
        d, h, w = (
            max(0, (n + before + after - win) // s + 1) if n else 0
            for n, (before, after), win, s in zip(size, self.pads, self.window, self.strides, strict=True)
        )
        return d, h, w

    def _shape(self, size: Triple, channels: int) -> tuple[int, ...]:
        if self.data_format == CHANNELS_LAST:
            return (self.batch, *size, channels)
        return (self.batch, channels, *size)


@dataclass(frozen=True)
class Conv3DSpec(Convolution):
    """One convolution, or a gradient of one, with explicit pads, a bias and a chain of elementwise steps.

    Whatever the direction, `size`, `channels`, `filters`, `kernel`, `strides`, `dilation`, `input_dilation`, `pads` and
    `groups` describe the *forward* convolution: of an input of `size` cells with `channels` channels to an output of
    `out_size` cells with `filters` channels. `direction` says which of its tensors is computed from the two others:

    - `forward`: the output.
    - `data_gradient`: the input; this is transposed convolution. The roles of input and output are exchanged:
      `input_shape` is that of what is read (`out_size` cells, `filters` channels), `output_shape` that of the result
      (`size` cells, `channels` channels), which `size` gives explicitly where several sizes have the same `out_size`.
      An input cell at i adds its products to the output cells i * strides + tap * dilation - pads before, those of
      them that exist. `kernel_shape` is unchanged, and is that of Keras's Conv3DTranspose: its filters, divided by
      `groups`, then its input channels. Bias and post-ops belong to the result: a bias has `channels` values.
    - `weight_gradient`: the weights. `input_shape` and `output_shape`, the latter that of the output's gradient, are
      read, and `kernel_shape` is the result; `bias` asks for the bias's gradient beside it. There are no post-ops.

    Attributes:
        batch: number of samples, 0 allowed.
        size: input depth, height, width in cells.
        channels: input channels.
        filters: output channels.
        kernel: taps per axis.
        strides, dilation: step of the window, distance of taps, per axis.
        pads: zero cells (before, after) per axis, around the dilated input; negative ones crop it.
        groups: channels and filters are both divisible by it.
        data_format: `channels_last` (N,D,H,W,C) or `channels_first` (N,C,D,H,W).
        dtype: element type of the input (`input_shape`).
        bias: whether a vector of one value for each channel of the result is added.
        post_ops: what becomes of the sums, step by step (:mod:`tvm_conv3d.spec.post_ops`); none is linear.
        direction: `forward`, `data_gradient` or `weight_gradient`.
        input_dilation: distance of neighbouring input cells per axis, with zeros between them; 1 is none.
        weights_dtype, output_dtype: element types of `kernel_shape` and `output_shape` where they differ from `dtype`,
            else None; see :attr:`dtypes`.

    Raises:
        ValueError: a value is out of range, the forward output would be empty along a spatial axis although the input
            is not, or one of them has over :data:`MOST_ELEMENTS`, or over :data:`MOST_CELLS` along an axis.
    """

    direction: str = FORWARD
    input_dilation: Triple = (1, 1, 1)

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilation", "input_dilation"):
            object.__setattr__(self, name, check_triple(name, getattr(self, name)))
        object.__setattr__(self, "size", tuple(int(v) for v in self.size))
        object.__setattr__(self, "pads", tuple(Pads(int(a), int(b)) for a, b in self.pads))
        if len(self.size) != 3 or min(self.size) < 0 or self.batch < 0:
            raise ValueError(f"`batch` and the three sizes must not be negative. Received: {self.batch}, {self.size}")
        if len(self.pads) != 3:
            raise ValueError(f"`pads` must be three pairs of integers. Received: {self.pads}")
        object.__setattr__(self, "post_ops", chains.canonical(self.post_ops))
        self._check_names()
        self._check_channels()
        for name in ("weights_dtype", "output_dtype"):
            # one way of saying it, so that equal problems are equal specs, also after `dtype` was replaced
            if getattr(self, name) == self.dtype:
                object.__setattr__(self, name, None)
        if min(self.size) > 0 and min(self.out_size) < 1:
            raise ValueError(
                f"The input is too small: size {self.size} with pads {tuple(map(tuple, self.pads))} holds no window of "
                f"{self.window} cells (kernel {self.kernel}, dilation {self.dilation}). Pad or enlarge the input."
            )
        for name, shape in (("input", self._forward_input), ("output", self._forward_output)):
            if math.prod(shape) > MOST_ELEMENTS or max(shape) > MOST_CELLS:
                raise ValueError(
                    f"The {name} is too large: shape {shape} has {math.prod(shape)} elements, where up to "
                    f"{MOST_ELEMENTS} are computed, and up to {MOST_CELLS} along an axis. Pad less, or cut the input."
                )

    def _check_channels(self) -> None:
        if self.groups < 1 or self.channels < 1 or self.filters < 1:
            raise ValueError(
                "`channels`, `filters` and `groups` must be at least 1. "
                f"Received: channels={self.channels}, filters={self.filters}, groups={self.groups}"
            )
        if self.channels % self.groups or self.filters % self.groups:
            raise ValueError(
                "`channels` and `filters` must be divisible by `groups`. "
                f"Received: channels={self.channels}, filters={self.filters}, groups={self.groups}"
            )

    def _check_names(self) -> None:
        for name, value, allowed in (
            ("data_format", self.data_format, (CHANNELS_LAST, CHANNELS_FIRST)),
            ("dtype", self.dtype, DTYPES),
            ("weights_dtype", self.weights_dtype or self.dtype, DTYPES),
            ("output_dtype", self.output_dtype or self.dtype, DTYPES),
            ("direction", self.direction, (FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT)),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}")
        if self.direction == WEIGHT_GRADIENT and self.post_ops:
            raise ValueError(f"A gradient of weights has no post-ops. Received: post_ops={self.post_ops}")

    @functools.cached_property
    def out_size(self) -> Triple:
        """Depth, height, width of the forward output."""
        d, h, w = (max(0, (n - 1) * apart + 1) for n, apart in zip(self.size, self.input_dilation, strict=True))
        return self._windows((d, h, w))

    @functools.cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Of the tensor that is read beside the weights; of a gradient of weights, that of the forward input."""
        return self._forward_output if self.direction == DATA_GRADIENT else self._forward_input

    @functools.cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Of the result, and of the residual operand; of a gradient of weights, that of the output's gradient."""
        return self._forward_input if self.direction == DATA_GRADIENT else self._forward_output

    @property
    def result_channels(self) -> int:
        """Channels of the result of a convolution or of a data gradient, and values of its bias."""
        return self.channels if self.direction == DATA_GRADIENT else self.filters

    @property
    def _forward_input(self) -> tuple[int, ...]:
        return self._shape(self.size, self.channels)

    @property
    def _forward_output(self) -> tuple[int, ...]:
        return self._shape(self.out_size, self.filters)

    @property
    def plain(self) -> bool:
        """Whether it is a forward convolution of an undilated input, with one element type."""
        return self.direction == FORWARD and self.input_dilation == (1, 1, 1) and len({*self.dtypes[:3]}) == 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct convolution, padding included."""
        d, h, w = self.out_size
        kd, kh, kw = self.kernel
        return self.batch * d * h * w * self.filters * kd * kh * kw * self.group_channels

    @property
    def gflop(self) -> float:
        """Floating-point operations of the direct convolution, in 1e9."""
        return 2e-9 * self.macs

    def key(self) -> str:
        """The problem in one line, readable by :meth:`parse`; safe in file names and CSV."""
        return spec_key.printed(self)

    @classmethod
    def parse(cls, key: str) -> Conv3DSpec:
        """The inverse of :meth:`key`.

        Raises:
            ValueError: `key` is not a spec's key.
        """
        return cls(**spec_key.fields(key))
