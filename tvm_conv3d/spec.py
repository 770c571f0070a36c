"""What is computed: a frozen, explicit description of one 3-D convolution.

A :class:`Conv3DSpec` names a problem completely and says nothing of how it is solved. Its one-line
:meth:`~Conv3DSpec.key` is the only identity of a problem in records, logs, file names, benchmark
tables, error messages and reproduction commands (as oneDNN's benchdnn descriptors are).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Triple = tuple[int, int, int]

CHANNELS_LAST = "channels_last"
CHANNELS_FIRST = "channels_first"

#: Element types of input and output; half types accumulate in float32.
DTYPES = ("float32", "float64", "float16", "bfloat16")

#: Activations with an elementwise form, computed inside the kernel's epilogue.
FUSED_ACTIVATIONS = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "log_sigmoid",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "hard_shrink",
    "soft_shrink",
    "tanh",
    "tanh_shrink",
    "softplus",
    "softsign",
    "exponential",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
)


class Pads(NamedTuple):
    """Zero cells before and after one axis."""

    before: int
    after: int


NO_PADS = (Pads(0, 0), Pads(0, 0), Pads(0, 0))


def _positive_triple(name: str, value: Sequence[int]) -> Triple:
    numbers = tuple(int(v) for v in value)
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"`{name}` must be three integers of at least 1. Received: {value}")
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


@dataclass(frozen=True)
class Conv3DSpec:
    """One convolution with explicit pads, a bias and an elementwise activation.

    Attributes:
        batch: number of samples, 0 allowed.
        size: input depth, height, width in cells.
        channels: input channels.
        filters: output channels.
        kernel: taps per axis.
        strides, dilation: step of the window, distance of taps, per axis.
        pads: zero cells (before, after) per axis; never negative.
        groups: channels and filters are both divisible by it.
        data_format: `channels_last` (N,D,H,W,C) or `channels_first` (N,C,D,H,W).
        dtype: element type of input and output. float16 and bfloat16 accumulate in float32.
        bias: whether a vector of `filters` values is added.
        activation: a name of :data:`FUSED_ACTIVATIONS`.

    Raises:
        ValueError: a value is out of range, or the output would be empty along a spatial axis
            although the input is not.
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
    activation: str = "linear"

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilation"):
            object.__setattr__(self, name, _positive_triple(name, getattr(self, name)))
        object.__setattr__(self, "size", tuple(int(v) for v in self.size))
        object.__setattr__(self, "pads", tuple(Pads(int(a), int(b)) for a, b in self.pads))
        if len(self.size) != 3 or min(self.size) < 0 or self.batch < 0:
            raise ValueError(f"`batch` and the three sizes must not be negative. Received: {self.batch}, {self.size}")
        self._check_pads()
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
        for name, value, allowed in (
            ("data_format", self.data_format, (CHANNELS_LAST, CHANNELS_FIRST)),
            ("dtype", self.dtype, DTYPES),
            ("activation", self.activation, FUSED_ACTIVATIONS),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}")
        if min(self.size) > 0 and min(self.out_size) < 1:
            raise ValueError(
                f"The input is too small: size {self.size} with pads {tuple(map(tuple, self.pads))} holds no window of "
                f"{self.window} cells (kernel {self.kernel}, dilation {self.dilation}). Pad or enlarge the input."
            )

    def _check_pads(self) -> None:
        if len(self.pads) != 3 or min(min(p) for p in self.pads) < 0:
            raise ValueError(f"`pads` must be three pairs of non-negative integers. Received: {self.pads}")

    @functools.cached_property
    def window(self) -> Triple:
        """Cells covered by the dilated kernel along each axis."""
        d, h, w = ((k - 1) * dil + 1 for k, dil in zip(self.kernel, self.dilation, strict=True))
        return d, h, w

    @functools.cached_property
    def out_size(self) -> Triple:
        """Output depth, height, width."""
        d, h, w = (
            max(0, (n + before + after - win) // s + 1) if n else 0
            for n, (before, after), win, s in zip(self.size, self.pads, self.window, self.strides, strict=True)
        )
        return d, h, w

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

    @property
    def accumulator(self) -> str:
        """Element type of the sums."""
        return "float64" if self.dtype == "float64" else "float32"

    @functools.cached_property
    def empty(self) -> bool:
        """True when the output has no element."""
        return 0 in self.output_shape

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

    def _shape(self, size: Triple, channels: int) -> tuple[int, ...]:
        if self.data_format == CHANNELS_LAST:
            return (self.batch, *size, channels)
        return (self.batch, channels, *size)

    def key(self) -> str:
        """The problem in one line, readable by :meth:`parse`; safe in file names and CSV."""
        pads = "x".join(f"{a}.{b}" for a, b in self.pads)
        return (
            f"n{self.batch}_i{_join(self.size)}x{self.channels}_o{self.filters}_k{_join(self.kernel)}"
            f"_s{_join(self.strides)}_d{_join(self.dilation)}_p{pads}_g{self.groups}"
            f"_{_FORMAT_TO_CODE[self.data_format]}_{self.dtype}_{'bias' if self.bias else 'nobias'}_{self.activation}"
        )

    @classmethod
    def parse(cls, key: str) -> Conv3DSpec:
        """The inverse of :meth:`key`.

        Raises:
            ValueError: `key` is not a spec's key.
        """
        match = _KEY.fullmatch(key.strip())
        if match is None:
            raise ValueError(f"Not a spec key. Received: {key!r}. A key looks like {_EXAMPLE_KEY}")
        field = match.groupdict()
        *size, channels = _numbers(field["input"])
        pads = tuple(Pads(*map(int, pair.split("."))) for pair in field["pads"].split("x"))
        return cls(
            batch=int(field["batch"]),
            size=tuple(size),  # type: ignore[arg-type]
            channels=channels,
            filters=int(field["filters"]),
            kernel=_numbers(field["kernel"]),  # type: ignore[arg-type]
            strides=_numbers(field["strides"]),  # type: ignore[arg-type]
            dilation=_numbers(field["dilation"]),  # type: ignore[arg-type]
            pads=pads,  # type: ignore[arg-type]
            groups=int(field["groups"]),
            data_format=_CODE_TO_FORMAT[field["format"]],
            dtype=field["dtype"],
            bias=field["bias"] == "bias",
            activation=field["activation"],
        )


_FORMAT_TO_CODE = {CHANNELS_LAST: "ndhwc", CHANNELS_FIRST: "ncdhw"}
_CODE_TO_FORMAT = {code: name for name, code in _FORMAT_TO_CODE.items()}
_TRIPLE = r"\d+x\d+x\d+"
_KEY = re.compile(
    rf"n(?P<batch>\d+)_i(?P<input>{_TRIPLE}x\d+)_o(?P<filters>\d+)_k(?P<kernel>{_TRIPLE})_s(?P<strides>{_TRIPLE})"
    rf"_d(?P<dilation>{_TRIPLE})_p(?P<pads>\d+\.\d+x\d+\.\d+x\d+\.\d+)_g(?P<groups>\d+)_(?P<format>ndhwc|ncdhw)"
    r"_(?P<dtype>[a-z0-9]+)_(?P<bias>bias|nobias)_(?P<activation>[a-z0-9_]+)",
    re.ASCII,
)
_EXAMPLE_KEY = "n1_i16x56x56x64_o64_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_bias_relu"


def _join(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
