"""Max and average pooling as an operator of torch's, `torch.ops.tvm_conv3d.pooling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from tvm_conv3d.functional import pooling
from tvm_conv3d.spec.pooling import KINDS, MAX, Pooling
from tvm_conv3d.torch.operators import registration
from tvm_conv3d.torch.operators.memory import channels_inside
from tvm_conv3d.torch.operators.registration import triple


class _Arguments(NamedTuple):
    """The operator's arguments behind its tensor."""

    kind: str
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


def _ours(x: Tensor, *arguments: Any) -> Tensor | str:
    reason = registration.why_torch((x,))
    if reason is not None:
        return reason
    kind, kernel, stride, padding, dilation, ceil_mode, count_include_pad, divisor = _Arguments(*arguments)
    try:
        window = (triple("kernel_size", kernel), triple("stride", stride or kernel), triple("padding", padding))
        size, apart = triple("size", x.shape[2:]), triple("dilation", dilation)
        spec = Pooling(kind, size, *window, apart, ceil_mode, count_include_pad, divisor)
        array, restore = channels_inside(x)
        return restore(pooling.pool(array, spec))
    except ValueError as error:
        return str(error)


def _theirs(x: Tensor, *arguments: Any) -> Tensor:
    kind, kernel, stride, padding, dilation, ceil_mode, count_include_pad, divisor = _Arguments(*arguments)
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}")
    if kind == MAX:
        if divisor is not None:
            raise ValueError(f"`divisor_override` is for averages. Received: kind={kind!r}, divisor_override={divisor}")
        return functional.max_pool3d(x, kernel, stride or None, padding, dilation, ceil_mode)
    if any(apart != 1 for apart in dilation):
        raise ValueError(f"`dilation` is for maxima. Received: kind={kind!r}, dilation={list(dilation)}")
    return functional.avg_pool3d(x, kernel, stride or None, padding, ceil_mode, count_include_pad, divisor)


#: The operator. Its arguments are those of `torch.nn.functional.max_pool3d` and `avg_pool3d`; `kind` is "max" or
#: "average". An empty `stride` is that of the kernel. A maximum has no use for `count_include_pad`.
POOLING = registration.register(
    "pooling(Tensor input, str kind, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
    "bool count_include_pad, int? divisor_override) -> Tensor",
    _ours,
    _theirs,
    in_float32=True,
)
