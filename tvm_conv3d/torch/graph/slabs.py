"""Torch's own convolutions of large volumes in slabs: the same sums in a part of the memory.

oneDNN computes in an order of memory of its own, and has copies in it of the whole input and the whole result while it
does: of a U-Net's last layers they are the most that a call takes. A recording's call, beside which there is all that
this package has loaded, does without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from tvm_conv3d.support import heap
from tvm_conv3d.torch.arguments import DTYPES, explicit_padding, three

#: Bytes of a slab's input and result together: slabs of fewer have a larger part in common with their neighbours.
_BYTES = 8 << 20

#: The product of the first four of an input's sizes up to which torch may not ask oneDNN, but unfold all windows of
#: the input: of a kernel of 3x3x3 these are 27 times the input.
_UNFOLDED = 20480


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`; a large convolution of contiguous tensors in the CPU's memory goes slab by slab.

    Raises:
        As the function.
    """
    result = _in_slabs(*args, **kwargs) if func is torch.conv3d else None
    if result is None:
        result = func(*args, **kwargs)
        if func is torch.conv_transpose3d and _is_plain(result) and result.nbytes > _BYTES:
            # oneDNN's copies are in the heap, which keeps them
            heap.give_back()
    return result


def _in_slabs(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    """The convolution; None where it is to be computed at once."""
    plain = _is_plain(input) and _is_plain(weight) and input.nbytes > _BYTES
    if not plain or input.shape[1] != groups * weight.shape[1]:
        return None
    pads = explicit_padding(padding, weight.shape[2:], three(dilation))
    (step, *_), (reach, *_), (pad, *others) = three(stride), three(dilation), pads
    window = reach * (weight.shape[2] - 1) + 1
    if len(pads) != 3 or pad >= window:
        return None
    depth = (input.shape[2] + 2 * pad - window) // step + 1
    # slabs of fewer planes would take more memory than the whole
    planes = _UNFOLDED // max(1, input.shape[:2].numel() * input.shape[3]) + 1
    least = 1 + max(0, planes - window + step - 1) // step
    result: torch.Tensor | None = None
    for first, last in _parts(depth, input.nbytes, least):
        start, stop = first * step - pad, (last - 1) * step - pad + window
        slab = input[:, :, max(0, start) : stop]
        if start < 0 or stop > input.shape[2]:
            slab = functional.pad(slab, (0, 0, 0, 0, max(0, -start), max(0, stop - input.shape[2])))
        part = torch.conv3d(slab.contiguous(), weight, bias, stride, (0, *others), dilation, groups)
        if result is None:
            result = part.new_empty((*part.shape[:2], depth, *part.shape[3:]))
        result[:, :, first:last] = part
    # what slabs leave in the heap is too small to have gone back by itself
    heap.give_back()
    return result


def _parts(depth: int, nbytes: int, least: int) -> Iterator[tuple[int, int]]:
    """First and last rows of slabs of about as many bytes, and of at least so many rows where there are as many."""
    count = max(1, depth // max(least, depth * _BYTES // (2 * nbytes)))
    for number in range(count):
        yield depth * number // count, depth * (number + 1) // count


def _is_plain(tensor: Any) -> bool:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return False
    return tensor.device.type == "cpu" and tensor.dim() == 5 and tensor.dtype in DTYPES and tensor.is_contiguous()
