"""`torch.nn.Conv3d` and `torch.nn.ConvTranspose3d` on the operator of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tvm_conv3d.torch.arguments import explicit_padding, three
from tvm_conv3d.torch.choice import count_torch, why_torch
from tvm_conv3d.torch.operators.convolution import CONVOLUTION

_NONE = (0, 0, 0)


class Conv3d(torch.nn.Conv3d):
    """`torch.nn.Conv3d`: arguments, parameters, `state_dict`, hooks, `repr` and errors are torch's.

    Tensors of float32, float64, float16 and bfloat16 in the CPU's memory are computed by this package, within 1e-5 of
    the exact result in float32 (2-norm); gradients are torch's. All else is computed by torch's own code, and counted
    with the reason (:func:`tvm_conv3d.torch.counters`). The result's memory is of the order of the input's:
    `channels_last_3d` or contiguous. Weights may change at any time, in any way.

    Example:

    >>> conv = Conv3d(16, 32, 3, padding=1).eval()
    >>> with torch.inference_mode():
    ...     y = conv(torch.rand(1, 16, 8, 56, 56))
    """

    @classmethod
    def from_torch(cls, module: torch.nn.Conv3d) -> Conv3d:
        """A module with the very parameters, hooks and mode of a `torch.nn.Conv3d`, which stays as it is.

        Raises:
            TypeError: `module` is of another class; a subclass may compute something else, and a parametrized module
                is one.
        """
        return _converted(cls, torch.nn.Conv3d, module)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        reason = why_torch(input, weight, bias) or _same_with_strides(self.padding, self.stride)
        if reason is not None:
            count_torch(reason)
            return super()._conv_forward(input, weight, bias)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = _NONE
        elif isinstance(padding, str):
            padding = explicit_padding(padding, weight.shape[2:], three(self.dilation))
        return _call(input, weight, bias, self.stride, padding, self.dilation, False, _NONE, self.groups)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`: as :class:`Conv3d` is `torch.nn.Conv3d`.

    Example:

    >>> up = ConvTranspose3d(32, 16, 2, stride=2).eval()
    >>> with torch.inference_mode():
    ...     y = up(torch.rand(1, 32, 4, 28, 28))
    """

    @classmethod
    def from_torch(cls, module: torch.nn.ConvTranspose3d) -> ConvTranspose3d:
        """As :meth:`Conv3d.from_torch`, of a `torch.nn.ConvTranspose3d`."""
        return _converted(cls, torch.nn.ConvTranspose3d, module)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of (batch, channels, depth, height, width), or of one sample without a batch.

        Args:
            input: the input.
            output_size: depth, height and width of the result, which then decide the output padding.

        Raises:
            ValueError, RuntimeError: as torch's.
        """
        reason = why_torch(input, self.weight, self.bias)
        if reason is not None or self.padding_mode != "zeros":
            count_torch(reason or "a padding mode that torch refuses")
            return super().forward(input, output_size)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        more = self._output_padding(input, output_size, stride, padding, self.kernel_size, 3, dilation)
        return _call(input, self.weight, self.bias, stride, padding, dilation, True, more, self.groups)


#: Each class of torch's, and what takes its place.
REPLACEMENTS: dict[type[torch.nn.Module], type[Conv3d] | type[ConvTranspose3d]] = {
    torch.nn.Conv3d: Conv3d,
    torch.nn.ConvTranspose3d: ConvTranspose3d,
}


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """The operator with torch's arguments, of a batch or of one sample."""
    # users set attributes to single integers, which torch's functions take
    arguments = (three(stride), three(padding), three(dilation), transposed, three(output_padding), groups)
    if x.dim() == 4:
        return CONVOLUTION(x.unsqueeze(0), weight, bias, *arguments).squeeze(0)
    return CONVOLUTION(x, weight, bias, *arguments)


def _same_with_strides(padding: Any, stride: Any) -> str | None:
    """The constructor refuses it; whoever sets attributes later is told by torch's function."""
    if padding == "same" and tuple(three(stride)) != (1, 1, 1):
        return 'padding="same" with strides, which torch refuses'
    return None


def _converted(cls: Any, original: Any, module: Any) -> Any:
    if type(module) is not original:
        raise TypeError(
            f"{cls.__name__}.from_torch takes a torch.nn.{original.__name__} itself, as a subclass may compute "
            f"something else. Received: {type(module).__module__}.{type(module).__qualname__}. Convert before "
            "parametrizing, or make a new module and load the state_dict."
        )
    made = cls.__new__(cls)
    # tables of its own: what is registered with one of the two is not registered with the other
    made.__dict__.update(
        {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    )
    return made
