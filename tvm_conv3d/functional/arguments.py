"""A convolution's arguments as every door takes them, and the problem that they pose with an input and a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, NO_PADS, Conv3DSpec, Pads, Triple, same_padding
from tvm_conv3d.spec import post_ops as chains

#: Elements before and after each axis; negative ones are cropped.
AllPads = tuple[Pads, Pads, Pads]

_T = TypeVar("_T")


class Problem(NamedTuple):
    """What is computed for an input.

    Attributes:
        spec: of the input.
        inside: the same with the channels last, for inputs of channels_first whose memory has them innermost; None
            for channels_last.
    """

    spec: Conv3DSpec
    inside: Conv3DSpec | None


def problem_of(spec: Conv3DSpec) -> Problem:
    """The problem of a spec."""
    first = spec.data_format == CHANNELS_FIRST
    return Problem(spec, replace(spec, data_format=CHANNELS_LAST) if first else None)


@dataclass(frozen=True)
class ConvArguments:
    """All that decides a convolution but its input and weights.

    Attributes:
        strides, dilation: step of the window, distance of taps, for depth, height and width.
        padding: "valid", "same", or cells before and after each axis; negative ones are cropped.
        groups: independent convolutions that channels and filters are split into.
        data_format: "channels_last" or "channels_first".
        post_ops: what becomes of the sums (:mod:`tvm_conv3d.spec.post_ops`).
    """

    strides: Triple = (1, 1, 1)
    padding: str | AllPads = "valid"
    dilation: Triple = (1, 1, 1)
    groups: int = 1
    data_format: str = CHANNELS_LAST
    post_ops: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, strides: Any, padding: Any, dilation: Any, groups: Any, data_format: Any, post_ops: Any
    ) -> ConvArguments:
        """The arguments as users give them, in their standard form.

        Raises:
            ValueError: one of them is not what it may be.
        """
        if not _is_integer(groups) or groups < 1:
            raise ValueError(f"`groups` must be an integer of at least 1. Received: groups={groups!r}")
        return cls(
            triple("strides", strides, 1),
            standard_padding(padding),
            triple("dilation", dilation, 1),
            int(groups),
            standard_data_format(data_format),
            chains.canonical(post_ops),
        )

    def problem(
        self,
        input_shape: tuple[int, ...],
        kernel_shape: tuple[int, ...],
        dtype: str,
        bias_shape: tuple[int, ...] | None,
    ) -> Problem:
        """What is computed of an input and weights of these shapes.

        Args:
            input_shape: five sizes, in the order of `data_format`.
            kernel_shape: five sizes, in the order of the public function.
            dtype: which is computed in.
            bias_shape: (filters,), or None.

        Raises:
            ValueError: the shapes do not fit together, or :meth:`spec` refuses.
        """
        self._check_shapes(input_shape, kernel_shape, bias_shape)
        return problem_of(self.spec(input_shape, kernel_shape, dtype, bias_shape is not None))

    def spec(self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype: str, bias: bool) -> Conv3DSpec:
        """The spec of shapes that fit together.

        Raises:
            ValueError: there is no room for one window, or nothing is left of the input.
        """
        batch, size, channels = self._split(input_shape)
        pads = self.explicit_pads(size, three(kernel_shape[:3]))
        left = (n + min(0, before) + min(0, after) for n, (before, after) in zip(size, pads, strict=True))
        if any(rest < min(n, 1) for rest, n in zip(left, size, strict=True)):
            raise ValueError(
                f"`padding` crops more than there is. Received: padding={tuple(map(tuple, pads))}, depth, height and "
                f"width {size}"
            )
        return Conv3DSpec(
            batch=batch,
            size=size,
            channels=channels,
            filters=kernel_shape[4],
            kernel=three(kernel_shape[:3]),
            strides=self.strides,
            dilation=self.dilation,
            pads=pads,
            groups=self.groups,
            data_format=self.data_format,
            dtype=dtype,
            bias=bias,
            post_ops=self.post_ops,
        )

    @property
    def of_weights(self) -> ConvArguments:
        """What calls have in common that may share packed weights."""
        return self

    def explicit_pads(self, size: Triple, kernel: Triple) -> AllPads:
        """Cells before and after each axis of an input of `size`."""
        if self.padding == "same":
            return same_padding(size, kernel, self.strides, self.dilation)
        return NO_PADS if isinstance(self.padding, str) else self.padding

    def _split(self, input_shape: tuple[int, ...]) -> tuple[int, Triple, int]:
        """Batch, (depth, height, width) and channels of an input."""
        if self.data_format == CHANNELS_LAST:
            batch, *size, channels = input_shape
        else:
            batch, channels, *size = input_shape
        return batch, three(size), channels

    def _check_shapes(
        self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...] | None
    ) -> None:
        """Raises ValueError where input, kernel and bias do not belong together."""
        wanted = "(kernel depth, kernel height, kernel width, channels / groups, filters)"
        self._check_axes(input_shape, kernel_shape, wanted)
        channels, filters = self._split(input_shape)[2], kernel_shape[4]
        if channels % self.groups or filters % self.groups:
            raise ValueError(
                "The channels of `x` and the filters of `w` must be divisible by `groups`. "
                f"Received: {channels} channels, {filters} filters, groups={self.groups}"
            )
        if kernel_shape[3] != channels // self.groups:
            raise ValueError(
                f"`w` must be {wanted}, with {channels // self.groups} for channels / groups, as `x` has {channels} "
                f"channels in {self.groups} groups. Received: w of shape {kernel_shape}. torch's weights, (filters, "
                "channels / groups, depth, height, width), are passed as `w.permute(2, 3, 4, 1, 0)`."
            )
        if bias_shape not in (None, (filters,)):
            raise ValueError(f"`b` must have shape ({filters},), one value a filter. Received: b of shape {bias_shape}")

    def _check_axes(
        self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], wanted: str, name: str = "x"
    ) -> None:
        """Raises ValueError unless both have five axes; the input is called `name`, the kernel's axes are `wanted`."""
        self._check_five(input_shape, name)
        if len(kernel_shape) != 5:
            raise ValueError(f"`w` must have five axes, {wanted}. Received: w of shape {kernel_shape}")

    def _check_five(self, shape: tuple[int, ...], name: str) -> None:
        """Raises ValueError unless an array called `name` has five axes."""
        if len(shape) != 5:
            axes = "depth, height, width"
            known = f"batch, {axes}, channels" if self.data_format == CHANNELS_LAST else f"batch, channels, {axes}"
            raise ValueError(
                f"`{name}` must have five axes, ({known}) for data_format={self.data_format!r}. "
                f"Received: {name} of shape {shape}"
            )


def standard_data_format(value: Any) -> str:
    """`value` in lower case.

    Raises:
        ValueError: not a data format.
    """
    data_format = str(value).lower()
    if data_format not in (CHANNELS_FIRST, CHANNELS_LAST):
        raise ValueError(
            "The `data_format` argument must be one of {'channels_first', 'channels_last'}. "
            + f"Received: data_format={data_format}"
        )
    return data_format


def standard_padding(padding: Any) -> str | AllPads:
    """`padding` as "valid", "same" or a pair for each axis.

    Args:
        padding: one of these, an integer for all sides, or an integer or a pair for each axis; negative ones crop.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(padding, str) and padding.lower() in ("valid", "same"):
        return padding.lower()
    axes = _elements(padding) or (padding,) * 3
    pairs = [_elements(axis) or (axis, axis) for axis in axes]
    if len(pairs) != 3 or not all(len(pair) == 2 and all(map(_is_integer, pair)) for pair in pairs):
        raise ValueError(
            '`padding` must be "valid", "same", an integer, three integers, or three pairs of integers (before, '
            f"after). Received: padding={padding!r}"
        )
    return three(Pads(int(before), int(after)) for before, after in pairs)


def check_residual(spec: Conv3DSpec, shape: tuple[int, ...] | None) -> None:
    """Makes sure that a residual operand of `shape`, None where there is none, is what the post-ops add.

    Raises:
        ValueError: there is one that no post-op adds, none to add, or it has another shape than the result.
    """
    if shape is None and not spec.residual:
        return
    if shape is None:
        raise ValueError(
            f"`post_ops` has {chains.ADD!r}, which adds `residual`, an array of the result's shape {spec.output_shape}."
            f" Received: post_ops={spec.post_ops}, residual=None"
        )
    if not spec.residual:
        raise ValueError(
            f"`residual` is added where `post_ops` has {chains.ADD!r}, as in ('add', 'relu'). Received: "
            f"post_ops={spec.post_ops}, residual of shape {shape}"
        )
    if shape != spec.output_shape:
        raise ValueError(
            f"`residual` must have the result's shape {spec.output_shape}. Received: residual of shape {shape}"
        )


def integers(name: str, values: Iterable[Any]) -> Triple:
    """Three numbers as ints; floats pass that are whole.

    Raises:
        ValueError: one is not whole.
    """
    values = tuple(values)
    if not all(map(_is_integer, values)):
        raise ValueError(f"`{name}` must be integers. Received: {name}={values}")
    return three(map(int, values))


def triple(name: str, value: Any, least: int) -> Triple:
    """`value`, an integer for all axes or three, as three.

    Raises:
        ValueError: it is something else, or one is less than `least`.
    """
    values = _elements(value) or (value,) * 3
    if len(values) != 3 or not all(_is_integer(v) and v >= least for v in values):
        raise ValueError(f"`{name}` must be an integer of at least {least}, or three. Received: {name}={value!r}")
    return integers(name, values)


def _elements(value: Any) -> tuple[Any, ...] | None:
    """The elements of a sequence; None where `value` is none."""
    try:
        return None if isinstance(value, str) else tuple(value)
    except TypeError:
        return None


def _is_integer(value: Any) -> bool:
    """Whether `value` equals an integer: calls are told apart by their arguments, and 1 is 1.0 there."""
    try:
        return not isinstance(value, str) and bool(value == int(value))
    except (TypeError, ValueError, OverflowError):
        return False


def three(values: Iterable[_T]) -> tuple[_T, _T, _T]:
    """Three values as a triple; raises ValueError where there are more or fewer."""
    first, second, third = values
    return first, second, third
