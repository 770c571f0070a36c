"""The arguments of a convolution's gradients, and the problems that these pose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm_conv3d.functional.arguments import ConvArguments, Problem, problem_of, triple
from tvm_conv3d.spec import CHANNELS_LAST, DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT, Conv3DSpec, Triple


def data_gradient_of(spec: Conv3DSpec) -> Conv3DSpec:
    """The problem whose result is the gradient of the input of `spec`, a convolution or a transposed one.

    It takes the same weights as they are, and the gradient of the output of `spec` as its input.
    """
    direction = FORWARD if spec.direction == DATA_GRADIENT else DATA_GRADIENT
    return replace(spec, direction=direction, bias=False, post_ops=())


def weight_gradient_of(spec: Conv3DSpec, bias: bool = False) -> Conv3DSpec:
    """The problem whose result is the gradient of the weights of `spec`, a convolution or a transposed one.

    It reads the larger volume, input of a convolution or gradient of a transposed one's output, as its input, and the
    other one as its gradient.

    Args:
        spec: whose weights' gradient it is.
        bias: whether that of the bias is computed beside it, of a convolution only.
    """
    return replace(spec, direction=WEIGHT_GRADIENT, bias=bias, post_ops=())


@dataclass(frozen=True)
class WeightGradientArguments(ConvArguments):
    """All that decides the gradient of a convolution's weights but its input and the gradient of its output.

    Attributes:
        kernel: depth, height and width of the weights.
        bias: whether the gradient of the bias is computed as well.
    """

    kernel: Triple = (1, 1, 1)
    bias: bool = False

    @classmethod
    def of(
        cls,
        strides: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        data_format: Any,
        post_ops: Any,
        kernel: Any = 1,
        bias: Any = False,
    ) -> WeightGradientArguments:
        """The arguments as users give them, in their standard form.

        Raises:
            ValueError: one of them is not what it may be.
        """
        common = ConvArguments.of(strides, padding, dilation, groups, data_format, post_ops)
        return cls(**vars(common), kernel=triple("kernel_size", kernel, 1), bias=bool(bias))

    def problem_of_both(self, input_shape: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> Problem:
        """What is computed of an input and a gradient of these shapes, in type `dtype`.

        Raises:
            ValueError: the shapes do not fit together.
        """
        for name, given in (("x", input_shape), ("gradient", shape)):
            self._check_five(given, name)
        (batch, _, channels), (others, cells, filters) = self._split(input_shape), self._split(shape)
        if channels % self.groups or filters % self.groups:
            raise ValueError(
                "The channels of `x` and of `gradient` must be divisible by `groups`. "
                f"Received: {channels} and {filters} channels, groups={self.groups}"
            )
        spec = self.spec(input_shape, (*self.kernel, channels // self.groups, filters), dtype, self.bias)
        if (others, cells) != (batch, spec.out_size):
            raise ValueError(
                f"`gradient` must have the shape of the convolution's output, {spec.output_shape}. Received: gradient "
                f"of shape {shape}, x of shape {input_shape}, kernel_size={self.kernel}, strides={self.strides}, "
                f"padding={self.padding}, dilation={self.dilation}"
            )
        return problem_of(weight_gradient_of(spec, self.bias))


@dataclass(frozen=True)
class DataGradientArguments(ConvArguments):
    """All that decides the gradient of a convolution's input but the gradient of its output and the weights.

    Attributes:
        size: depth, height and width of the convolution's input: several sizes have outputs of one size.
    """

    size: Triple = (0, 0, 0)

    @classmethod
    def of(
        cls, strides: Any, padding: Any, dilation: Any, groups: Any, data_format: Any, post_ops: Any, size: Any = 0
    ) -> DataGradientArguments:
        """The arguments as users give them, in their standard form.

        Raises:
            ValueError: one of them is not what it may be.
        """
        common = ConvArguments.of(strides, padding, dilation, groups, data_format, post_ops)
        return cls(**vars(common), size=triple("input_size", size, 0))

    @property
    def of_weights(self) -> ConvArguments:
        """All but the size: weights lie alike whatever it is."""
        return replace(self, size=(0, 0, 0))

    def spec(self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype: str, bias: bool) -> Conv3DSpec:
        """The spec of shapes that fit together; `input_shape` is that of the output's gradient.

        Raises:
            ValueError: an input of this size has an output of another size, or none.
        """
        batch, cells, _ = self._split(input_shape)
        channels = kernel_shape[3] * self.groups
        last = self.data_format == CHANNELS_LAST
        shape = (batch, *self.size, channels) if last else (batch, channels, *self.size)
        forward = super().spec(shape, kernel_shape, dtype, bias)
        if forward.out_size != cells:
            raise ValueError(
                f"An input of depth, height and width {self.size} has an output of {forward.out_size}, and `gradient` "
                f"is one of {cells}. Received: gradient of shape {input_shape}, input_size={self.size}, w of shape "
                f"{kernel_shape}, strides={self.strides}, padding={self.padding}, dilation={self.dilation}"
            )
        return data_gradient_of(forward)

    def _check_shapes(
        self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...] | None
    ) -> None:
        """Raises ValueError where gradient and kernel do not belong together."""
        wanted = "(kernel depth, kernel height, kernel width, channels / groups, filters)"
        self._check_axes(input_shape, kernel_shape, wanted, "gradient")
        filters = self._split(input_shape)[2]
        if filters % self.groups:
            raise ValueError(
                "The channels of `gradient` must be divisible by `groups`. "
                f"Received: {filters} channels, groups={self.groups}"
            )
        if kernel_shape[4] != filters:
            raise ValueError(
                f"`w` must be {wanted}, with {filters} filters, as `gradient` has channels. Received: w of shape "
                f"{kernel_shape}. torch's weights, (filters, channels / groups, depth, height, width), are passed as "
                "`w.permute(2, 3, 4, 1, 0)`."
            )
