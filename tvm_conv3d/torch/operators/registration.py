"""What operators without weights have in common: one registration with torch, and torch's own functions beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.spec import Triple
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators import autograd

#: Takes an operator's arguments.
_Kernel = Callable[..., Any]

_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")


def register(schema: str, ours: _Kernel, theirs: _Kernel, in_float32: bool = False) -> Any:
    """Registers an operator: for the CPU, for compilers and exporters, under autograd, autocast and vmap.

    Its results are fresh tensors in `torch.channels_last_3d`. Where a gradient is needed, or forward-mode
    differentiation is at work, they are torch's, which can be derived.

    Args:
        schema: the first argument is a tensor, or a list of tensors, which mapped axes are the batch's of.
        ours: computes the result of tensors in the CPU's memory, or gives the reason why torch is to.
        theirs: torch's own functions, which can be derived, and whose errors are the operator's.
        in_float32: under autocast, half types are computed and returned in float32, as torch does with the like.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.tvm_conv3d, name).default

    def by_torch(reason: str, *arguments: Any) -> Tensor:
        counting.count_torch(f"{name}: {reason}")
        result = theirs(*arguments)
        return result.contiguous(memory_format=torch.channels_last_3d) if result.dim() == 5 else result

    def on_cpu(*arguments: Any) -> Tensor:
        result = ours(*arguments)
        if isinstance(result, str):
            return by_torch(result, *arguments)
        counting.count_ours()
        return result

    def fake(*arguments: Any) -> Tensor:
        like = theirs(*arguments)
        return torch.empty_like(like, memory_format=torch.channels_last_3d) if like.dim() == 5 else like

    def autocast(x: Tensor, *arguments: Any) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operator(x, *arguments)

    def vmap(info: Any, in_dims: tuple[Any, ...], given: Any, *arguments: Any) -> tuple[Tensor, int]:
        if isinstance(given, Tensor):
            mapped = given.movedim(in_dims[0], 0)
            result = operator(_folded(mapped), *arguments)
        else:
            several = [
                each.expand(info.batch_size, *each.shape) if axis is None else each.movedim(axis, 0)
                for each, axis in zip(given, in_dims[0], strict=True)
            ]
            mapped = several[0]
            result = operator([_folded(each) for each in several], *arguments)
        return (result if mapped.dim() == 5 else result.unflatten(0, mapped.shape[:2])), 0

    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, autograd.kernel(operator, functools.partial(by_torch, "a gradient is needed")), "Autograd")
    if in_float32:
        _LIBRARY.impl(name, autocast, "AutocastCPU")
    torch.library.register_fake(f"tvm_conv3d::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"tvm_conv3d::{name}", vmap, lib=_LIBRARY)
    return operator


def why_torch(tensors: Sequence[Tensor]) -> str | None:
    """Why torch's own code is to compute what takes these tensors; None where ours may."""
    for tensor in tensors:
        if tensor.dim() != 5:
            return f"an input of {tensor.dim()} axes"
        if tensor.dtype not in DTYPES:
            return f"numbers of type {tensor.dtype}"
        if 0 in tensor.shape:
            # which of them are errors is for torch to say
            return "tensors without elements"
    return None


def triple(name: str, values: Sequence[int]) -> Triple:
    """The numbers of depth, height and width.

    Raises:
        ValueError: there are not three of them.
    """
    if len(values) != 3:
        raise ValueError(f"`{name}` must be three integers. Received: {list(values)}")
    depth, height, width = values
    return depth, height, width


def _folded(mapped: Tensor) -> Tensor:
    """Samples of a mapped axis and of the batch as those of one batch; of samples without a batch, the mapped axis."""
    return mapped if mapped.dim() == 5 else mapped.flatten(0, 1)
