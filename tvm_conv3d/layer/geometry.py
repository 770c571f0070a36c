"""From Keras's arguments and an input shape to shapes and a :class:`~tvm_conv3d.spec.Conv3DSpec`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_conv3d.functional.arguments import ConvArguments, integers
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Geometry:
    """A layer's arguments that decide shapes, as the layer stores them."""

    filters: Any
    kernel_size: tuple[Any, Any, Any]
    strides: tuple[Any, Any, Any]
    padding: Any
    data_format: str
    dilation_rate: tuple[Any, Any, Any]
    groups: Any

    @property
    def channel_axis(self) -> int:
        return -1 if self.data_format == CHANNELS_LAST else 1

    def output_shape(self, input_shape: Sequence[Any]) -> Shape:
        """The output's shape; unknown dimensions (None) stay unknown.

        Raises:
            ValueError: wrong rank, no room for one window with `valid` padding, or padding that is a list.
        """
        spatial = tuple(input_shape[1:-1] if self.data_format == CHANNELS_LAST else input_shape[2:])
        kernel_shape = (*self.kernel_size, input_shape[self.channel_axis], self.filters)
        if len(kernel_shape) != len(input_shape):
            raise ValueError(
                "Kernel shape must have the same length as input, but received "
                f"kernel of shape {kernel_shape} and input of shape {input_shape}."
            )
        if self.padding == "valid":
            out = self._valid_size(spatial, kernel_shape, input_shape)
        elif self.padding == "same":
            out = tuple(
                None if n is None else int((n - 1) // s + 1) for n, s in zip(spatial, self.strides, strict=True)
            )
        else:
            raise ValueError(f"`padding` must be either `'valid'` or `'same'`. Received {self.padding}.")
        if self.data_format == CHANNELS_LAST:
            return (input_shape[0], *out, self.filters)
        return (input_shape[0], self.filters, *out)

    def _valid_size(self, spatial: Shape, kernel_shape: Shape, input_shape: Sequence[Any]) -> Shape:
        axes = zip(spatial, self.kernel_size, self.strides, self.dilation_rate, strict=True)
        out = tuple(None if n is None else int((n - d * (k - 1) - 1) // s + 1) for n, k, s, d in axes)
        if any(n is not None and n <= 0 for n in out):
            raise ValueError(
                "Computed output size would be zero or negative. Received "
                f"`inputs shape={input_shape}`, `kernel shape={kernel_shape}`, "
                f"`dilation_rate={np.array(self.dilation_rate)}`, `strides={self.strides}`, `padding={self.padding}`."
            )
        return out

    def kernel_shape(self, input_shape: Sequence[Any]) -> Shape:
        """The kernel's shape for an input shape, all of it checked as Keras's `build` does.

        Raises:
            TypeError: the number of channels is unknown.
            ValueError: the groups do not share the channels, the input has no channel, or :meth:`output_shape` refuses.
        """
        channels = input_shape[self.channel_axis]
        if channels % self.groups != 0:
            raise ValueError(
                "The number of input channels must be evenly divisible by the number of groups. "
                f"Received groups={self.groups}, but the input has {channels} channels "
                f"(full input shape is {input_shape})."
            )
        self.output_shape(input_shape)
        if channels < 1:
            raise ValueError(f"The input must have at least one channel. Received: input_shape={input_shape}")
        integers("strides", self.strides)
        integers("dilation_rate", self.dilation_rate)
        return (*self.kernel_size, channels // self.groups, self.filters)

    def spec(self, input_shape: tuple[int, ...], dtype: str, bias: bool, post_ops: tuple[str, ...]) -> Conv3DSpec:
        """The problem posed by an input of known shape.

        Args:
            input_shape: five numbers.
            dtype: compute dtype.
            bias: whether a bias is added.
            post_ops: what becomes of the sums (:mod:`tvm_conv3d.spec.post_ops`).

        Raises:
            ValueError: as :meth:`output_shape`.
        """
        self.output_shape(input_shape)
        kernel = integers("kernel_size", self.kernel_size)
        channels = input_shape[self.channel_axis]
        arguments = ConvArguments(
            strides=integers("strides", self.strides),
            padding=self.padding,
            dilation=integers("dilation_rate", self.dilation_rate),
            groups=int(self.groups),
            data_format=self.data_format,
            post_ops=post_ops,
        )
        return arguments.spec(input_shape, (*kernel, channels // arguments.groups, int(self.filters)), dtype, bias)


def check_weight_shape(shape: Shape, path: str) -> tuple[int, ...]:
    """`shape` as ints.

    Raises:
        ValueError: a dimension is unknown or not an integer.
    """
    for dimension in shape:
        if dimension is not None and not _is_integer(dimension):
            raise ValueError(
                f"Cannot convert '{shape}' to a shape. Found invalid dimension '{dimension}' "
                f"of type '{type(dimension)}'. "
            )
    if None in shape:
        raise ValueError(
            "Shapes used to initialize variables must be fully-defined (no `None` dimensions). "
            f"Received: shape={shape} for variable path='{path}'"
        )
    return tuple(int(dimension) for dimension in shape)


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
