"""Concatenation along the channels as an operator of torch's, `torch.ops.tvm_conv3d.concatenation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tvm_conv3d.runtime import concatenation
from tvm_conv3d.torch.operators import registration
from tvm_conv3d.torch.operators.memory import channels_inside


def _ours(inputs: Sequence[Tensor]) -> Tensor | str:
    reason = registration.why_torch(inputs)
    if reason is not None:
        return reason
    if len({(each.dtype, each.shape[0], *each.shape[2:]) for each in inputs}) != 1:
        return "inputs of several types or sizes, or none"
    arrays, (restore, *_) = zip(*map(channels_inside, inputs), strict=True)
    try:
        return restore(concatenation.concatenate(arrays))
    except ValueError as error:
        return str(error)


def _theirs(inputs: Sequence[Tensor]) -> Tensor:
    # the axis of the channels, with a batch or without
    return torch.cat(list(inputs), -4)


#: The operator: `torch.cat` along the channels, of batches or of single samples.
CONCATENATION = registration.register("concatenation(Tensor[] inputs) -> Tensor", _ours, _theirs)
