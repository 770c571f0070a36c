"""A transposed convolution's arguments, and the problem that they pose with an input and a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm_conv3d.functional.arguments import ConvArguments, three, triple
from tvm_conv3d.spec import DATA_GRADIENT, Conv3DSpec, Pads, Triple


class _Axis(NamedTuple):
    """What is cut off before the first cell of the result along an axis, and the size of the result."""

    before: int
    size: int


@dataclass(frozen=True)
class TransposeArguments(ConvArguments):
    """All that decides a transposed convolution but its input and weights.

    Without padding the result has (size - 1) * stride + window cells along an axis, of which explicit padding takes
    some off. What "same" and "valid" mean is Keras's.

    Attributes:
        output_padding: cells behind, which padding counts or which no window reaches; None for Keras's default, which
            is none where padding is explicit.
    """

    output_padding: Triple | None = None

    @classmethod
    def of(
        cls,
        strides: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        data_format: Any,
        post_ops: Any,
        output_padding: Any = None,
    ) -> TransposeArguments:
        """The arguments as users give them, in their standard form.

        Raises:
            ValueError: one of them is not what it may be.
        """
        more = None if output_padding is None else triple("output_padding", output_padding, 0)
        common = ConvArguments.of(strides, padding, dilation, groups, data_format, post_ops)
        return cls(**vars(common), output_padding=more)

    def spec(self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dtype: str, bias: bool) -> Conv3DSpec:
        """The spec of shapes that fit together; the kernel's is (depth, height, width, filters / groups, channels).

        Raises:
            ValueError: nothing is left of the result.
        """
        batch, cells, channels = self._split(input_shape)
        windows = three((k - 1) * d + 1 for k, d in zip(kernel_shape[:3], self.dilation, strict=True))
        axes = three(self._axis(axis, cells[axis], windows[axis]) for axis in range(3))
        if any(axis.size < min(n, 1) for axis, n in zip(axes, cells, strict=True)):
            raise ValueError(
                f"`padding` leaves nothing of the result. Received: padding={self.padding}, output_padding="
                f"{self.output_padding}, depth, height and width {cells}, windows of {windows} cells"
            )
        return Conv3DSpec(
            batch=batch,
            size=three(axis.size for axis in axes),
            channels=kernel_shape[3] * self.groups,
            filters=channels,
            kernel=three(kernel_shape[:3]),
            strides=self.strides,
            dilation=self.dilation,
            # so much behind that the result, as an input, has as many windows as there are cells
            pads=three(
                Pads(axis.before, (n - 1) * s + window - axis.before - axis.size)
                for axis, n, s, window in zip(axes, cells, self.strides, windows, strict=True)
            ),
            groups=self.groups,
            data_format=self.data_format,
            dtype=dtype,
            bias=bias,
            post_ops=self.post_ops,
            direction=DATA_GRADIENT,
        )

    def _axis(self, axis: int, cells: int, window: int) -> _Axis:
        stride, more = self.strides[axis], None if self.output_padding is None else self.output_padding[axis]
        if cells == 0:
            return _Axis(0, 0)
        whole = (cells - 1) * stride + window
        if self.padding == "valid":
            return _Axis(0, whole + (max(0, stride - window) if more is None else more))
        if self.padding == "same":
            size = cells * stride if more is None else (cells - 1) * stride + window % 2 + more
            return _Axis(max(0, whole - size) // 2, size)
        before, after = self.explicit_pads((0, 0, 0), (1, 1, 1))[axis]
        return _Axis(before, whole - before - after + (more or 0))

    def _check_shapes(
        self, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...] | None
    ) -> None:
        """Raises ValueError where input, kernel and bias do not belong together."""
        wanted = "(kernel depth, kernel height, kernel width, filters / groups, channels)"
        self._check_axes(input_shape, kernel_shape, wanted)
        channels, filters = self._split(input_shape)[2], kernel_shape[3] * self.groups
        if channels % self.groups:
            raise ValueError(
                "The channels of `x` must be divisible by `groups`. "
                f"Received: {channels} channels, groups={self.groups}"
            )
        if kernel_shape[4] != channels:
            raise ValueError(
                f"`w` must be {wanted}, with {channels} channels, as `x` has. Received: w of shape {kernel_shape}. "
                "torch's weights, (channels, filters / groups, depth, height, width), are passed as "
                "`w.permute(2, 3, 4, 1, 0)`."
            )
        if bias_shape not in (None, (filters,)):
            raise ValueError(f"`b` must have shape ({filters},), one value a filter. Received: b of shape {bias_shape}")
