"""Normalizations of tensors in the CPU's memory: by the functional core, or by torch's own code where that can't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tvm_conv3d.functional.normalization import normalize
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec.normalization import PRELU, canonical
from tvm_conv3d.spec.post_ops import ADD
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators import post_ops as chains
from tvm_conv3d.torch.operators import registration
from tvm_conv3d.torch.operators.composition import in_channels_last
from tvm_conv3d.torch.operators.memory import channels_inside

#: Calls that are kept at hand, told apart by shapes, types and arguments.
_MAX_CALLS = 4096

#: Types of data whose statistics and parameters may be of float32, too, as torch's may be.
_HALVES = (torch.float16, torch.bfloat16)


class Arguments(NamedTuple):
    """The operators' arguments behind their input.

    Attributes:
        groups: of the channels; all of them for instance norm.
        running_mean, running_var: both for batch norm with these statistics, which does not look at `groups`; or None.
        weight, bias: of each channel, or None.
        epsilon: is added to variances.
        residual: what "add" adds, or None.
        slope: of "prelu", or None.
        post_ops: as :func:`tvm_conv3d.torch.operators.post_ops.apply` takes them.
    """

    groups: int
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    epsilon: float
    residual: Tensor | None
    slope: Tensor | None
    post_ops: Sequence[str]

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """What has a number for each channel."""
        return self[1:5]


class _Refused(str):
    """Why torch's own code computes calls of a kind."""


_calls: Recent[Any, tuple[str, ...] | _Refused] = process.keep(
    "torch: checked calls of normalizations", Recent(_MAX_CALLS)
)


def normalization_of(x: Tensor, *arguments: Any) -> Tensor:
    """The normalization of `x`, (batch, channels, depth, height, width), in a fresh tensor, channels_last_3d.

    Args:
        x: the input, in the CPU's memory.
        arguments: of :class:`Arguments`.

    Raises:
        ValueError: a post-op is unknown, or an operand is missing or belongs to no post-op; and as torch's functions.
        RuntimeError: shapes or types do not fit together, in torch's words.
        MemoryError: there is none for the result or the sums.
    """
    given = Arguments(*arguments)
    post_ops = _checked(x, given)
    if isinstance(post_ops, _Refused):
        counting.count_torch(post_ops)
        return composed(x, given)
    source = interchange.with_channels_last(interchange.wrap(x))
    array = source.numpy()
    data = interchange.prepare(array, DTYPES[x.dtype])
    # what was laid out anew is nobody else's
    result = source.restore(_normalized(data, _residual_of(given), given, post_ops, in_place=data is not array))
    counting.count_ours()
    return result


def normalize_in_place(x: Tensor, *arguments: Any) -> None:
    """:func:`normalization_of`, written over `x`, of whatever order of memory.

    Raises:
        As :func:`normalization_of`; RuntimeError: elements of `x` share memory, in torch's words.
    """
    given = Arguments(*arguments)
    post_ops = _checked(x, given)
    if not isinstance(post_ops, _Refused):
        array = interchange.with_channels_last(interchange.wrap(x)).numpy()
        residual = _residual_of(given)
        lies_so = array.flags.c_contiguous and array.flags.aligned and _address(array) == x.data_ptr()
        if lies_so and (residual is None or not np.may_share_memory(array, residual)):
            _normalized(array, residual, given, post_ops, in_place=True)
            counting.count_ours()
            return
    x.copy_(normalization_of(x, *given))


def composed(x: Tensor, given: Arguments) -> Tensor:
    """The same by torch's own functions, differentiable; channels_last_3d where there are five axes, else contiguous.

    As many groups as channels are an instance norm, which torch refuses of a single position.

    Raises:
        As :func:`normalization_of`.
    """
    groups, mean, variance, weight, bias, epsilon, residual, slope, post_ops = given
    if mean is not None or variance is not None:
        y = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=epsilon)
    elif x.dim() > 1 and groups == x.shape[1]:
        y = functional.instance_norm(x, weight=weight, bias=bias, eps=epsilon)
    elif groups < 1:
        raise ValueError(f"`groups` must divide the channels, or be as many. Received: groups={groups}")
    else:
        y = functional.group_norm(x, groups, weight, bias, epsilon)
    y = chains.apply(y, post_ops, residual, slope)
    return in_channels_last(y) if y.dim() == 5 else y.contiguous()


def _checked(x: Tensor, given: Arguments) -> tuple[str, ...] | _Refused:
    """The chain of calls of this kind, or why torch's own code is asked."""
    tensors = (*given.vectors, given.residual, given.slope)
    kinds = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in (x, *tensors))
    key = (kinds, given.groups, given.epsilon, tuple(given.post_ops))
    found = _calls.get(key)
    if found is None:
        found = _check(x, given)
        _calls.put(key, found)
    return found


def _check(x: Tensor, given: Arguments) -> tuple[str, ...] | _Refused:
    post_ops = canonical(given.post_ops)
    reason = _why_torch(x, given)
    return post_ops if reason is None else _Refused(f"normalization: {reason}")


def _why_torch(x: Tensor, given: Arguments) -> str | None:
    """Why torch's own code is asked; what is wrong with arguments is for it to say."""
    reason = registration.why_torch((x,))
    if reason is not None:
        return reason
    vectors = [each for each in given.vectors if each is not None]
    types = {each.dtype for each in vectors}
    if len(types) > 1 or not types <= {x.dtype, *((torch.float32,) if x.dtype in _HALVES else ())}:
        return f"an input of {x.dtype} and parameters of {', '.join(sorted(map(str, types)))}"
    channels = x.shape[1]
    if any(each.shape != (channels,) for each in vectors):
        return "statistics or parameters that are not one number for each channel"
    if (given.running_mean is None) != (given.running_var is None):
        return "one statistic without the other"
    if given.running_mean is None and (given.groups < 1 or channels % given.groups):
        return f"{channels} channels in {given.groups} groups"
    if given.running_mean is None and given.groups == channels and x.numel() == x.shape[0] * channels:
        return "a single element of each channel"
    if not given.epsilon >= 0:
        return f"an epsilon of {given.epsilon}"
    residual, slope = given.residual, given.slope
    if (residual is None) == (ADD in given.post_ops) or (slope is None) == (PRELU in given.post_ops):
        return "an operand that is missing, or belongs to no post-op"
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return "a residual operand of another shape or type"
    if slope is not None and (slope.numel() != 1 or not slope.is_floating_point()):
        return f"a slope of {slope.numel()} numbers of type {slope.dtype}"
    return None


def _normalized(
    data: np.ndarray, residual: np.ndarray | None, given: Arguments, post_ops: tuple[str, ...], in_place: bool
) -> np.ndarray:
    mean, variance, weight, bias = (None if each is None else interchange.wrap(each).numpy() for each in given.vectors)
    return normalize(
        data,
        given.groups,
        given.epsilon,
        None if mean is None or variance is None else (mean, variance),
        weight,
        bias,
        residual,
        0.0 if given.slope is None else float(given.slope),
        post_ops,
        in_place,
    )


def _residual_of(given: Arguments) -> np.ndarray | None:
    """The residual operand with the channels last, as it lies or laid out anew."""
    if given.residual is None:
        return None
    array, _ = channels_inside(given.residual)
    return array


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
