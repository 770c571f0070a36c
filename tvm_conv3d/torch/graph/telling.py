"""What torch's functions tell of a tensor, by their names: its form, its values, its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

#: Functions whose result says nothing of a tensor's values.
_OF_FORM = frozenset(
    (
        "dim",
        "size",
        "stride",
        "numel",
        "nelement",
        "ndimension",
        "element_size",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "is_tensor",
        "is_storage",
        "__len__",
        "get_device",
        "is_inference",
        "is_same_size",
        "_set_grad_enabled",
        "is_grad_enabled",
        "result_type",
        "broadcast_shapes",
        "dtype",
        "device",
        "layout",
        "is_cuda",
        "requires_grad",
    )
)

#: Functions whose result has a shape that depends on values.
_OF_VALUES = frozenset(
    (
        "nonzero",
        "nonzero_numpy",
        "argwhere",
        "unique",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
        "masked_select",
        "bincount",
        "to_sparse",
    )
)

#: Functions that look at the order of memory, which a replay has otherwise.
_OF_MEMORY = frozenset(
    (
        "as_strided",
        "as_strided_",
        "as_strided_scatter",
        "set_",
        "storage_offset",
        "data_ptr",
        "untyped_storage",
    )
)


def function_name(func: Any) -> str:
    """The name by which people know a function of torch's."""
    if is_getter(func):
        return str(func.__self__.__name__)
    if isinstance(func, torch._ops.OpOverload):
        return str(func._schema.name.partition("::")[2])
    return str(getattr(func, "__name__", func))


def is_getter(func: Any) -> bool:
    """Whether it reads an attribute of a tensor."""
    return getattr(func, "__name__", "") == "__get__"


def tells_form(func: Any) -> bool:
    """Whether what a function returns says nothing of a tensor's values."""
    return is_getter(func) or function_name(func) in _OF_FORM


def looks_at_memory(func: Any) -> bool:
    """Whether a function looks at the order of memory."""
    return function_name(func) in _OF_MEMORY


def gives_shape_by_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call's result has a shape that depends on values."""
    name, count = function_name(func), len(args) + len(kwargs)
    if name == "repeat_interleave":
        # of counts that are a tensor's values
        return count == 1 or isinstance(args[1] if len(args) > 1 else kwargs.get("repeats"), torch.Tensor)
    return name in _OF_VALUES or (name == "where" and count == 1) or _by_mask(name, args)


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether elements are chosen by a mask."""
    if name not in ("__getitem__", "index", "index_put", "index_put_", "__setitem__"):
        return False
    masks = (torch.bool, torch.uint8)
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype in masks for leaf in pytree.tree_leaves(args[1:]))
