"""`torch.ops.tvm_conv3d.normalization` and, in place, `normalization_`: all that torch asks of the two operators.

Gradients are those of torch's own functions, which autograd sees in place of the operators. Autocast leaves both alone,
as it does torch's own normalizations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.torch import counting
from tvm_conv3d.torch.operators import autograd, cpu_normalization
from tvm_conv3d.torch.operators.cpu_normalization import Arguments, composed

_NAME, _IN_PLACE_NAME = "normalization", "normalization_"
_ARGUMENTS = (
    "int groups, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, float epsilon, "
    "Tensor? residual, Tensor? slope, str[] post_ops"
)
# compilers must not lay out the input anew: it would be copied once more
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")
_LIBRARY.define(f"{_NAME}(Tensor input, {_ARGUMENTS}) -> Tensor", tags=_TAGS)
_LIBRARY.define(f"{_IN_PLACE_NAME}(Tensor(a!) input, {_ARGUMENTS}) -> ()", tags=_TAGS)

#: The operators; their arguments are a tensor's and those of :class:`Arguments`.
NORMALIZATION = torch.ops.tvm_conv3d.normalization.default
NORMALIZATION_ = torch.ops.tvm_conv3d.normalization_.default


def _derivable(x: Tensor, *arguments: Any) -> Tensor:
    counting.count_torch("normalization: a gradient is needed")
    return composed(x, Arguments(*arguments))


def _derivable_in_place(x: Tensor, *arguments: Any) -> None:
    # a copy: what is derived must still be there
    x.copy_(_derivable(x.clone(), *arguments))


def _noting_the_change(x: Tensor, *arguments: Any) -> None:
    """Counts a version of what is written over, as torch's own operators in place do."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        NORMALIZATION_(x, *arguments)
    torch.autograd.graph.increment_version(x)


def _elsewhere(x: Tensor, *arguments: Any) -> Tensor:
    """Of tensors that are not in the CPU's memory."""
    counting.count_torch(f"normalization: tensors on {x.device.type}")
    return composed(x, Arguments(*arguments))


def _elsewhere_in_place(x: Tensor, *arguments: Any) -> None:
    x.copy_(_elsewhere(x, *arguments))


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    """Shape, type and strides of a result; wrong arguments are refused in torch's words."""
    return composed(x, Arguments(*arguments))


def _fake_in_place(x: Tensor, *arguments: Any) -> None:
    composed(x, Arguments(*arguments))


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    """The mapped axis of input and residual operand becomes a part of the batch; of others it is gone along."""
    given, mapped = Arguments(*arguments), Arguments(*in_dims[1:])
    count = info.batch_size
    if any(dim is not None for dim in (*mapped.vectors, mapped.slope)):
        return torch.stack([NORMALIZATION(*each) for each in _unbound(count, in_dims, (x, *arguments))]), 0
    x = _in_front(x, in_dims[0], count)
    if given.residual is not None:
        given = given._replace(residual=_in_front(given.residual, mapped.residual, count).flatten(0, 1))
    return NORMALIZATION(x.flatten(0, 1), *given).unflatten(0, x.shape[:2]), 0


def _vmap_in_place(info: Any, in_dims: tuple[Any, ...], x: Tensor, *arguments: Any) -> tuple[None, None]:
    if in_dims[0] is None:
        raise RuntimeError(
            "vmap: tvm_conv3d::normalization_ can't write a result for each mapped argument into an input that is not "
            "mapped. Map it, too, or use normalization."
        )
    result, _ = _vmap(info, in_dims, x, *arguments)
    x.copy_(result.movedim(0, in_dims[0]))
    return None, None


def _in_front(x: Tensor, dim: int | None, count: int) -> Tensor:
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)


def _unbound(count: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> list[list[Any]]:
    """The arguments of each single call."""
    pairs = list(zip(arguments, in_dims, strict=True))
    return [[a.select(dim, i) if isinstance(dim, int) else a for a, dim in pairs] for i in range(count)]


def _register(operator: Any, cpu: Any, derivable: Any, elsewhere: Any, fake: Any, vmap: Any) -> None:
    name = operator.name().removeprefix("tvm_conv3d::")
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, autograd.kernel(operator, derivable), "Autograd")
    _LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tvm_conv3d::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"tvm_conv3d::{name}", vmap, lib=_LIBRARY)


_register(NORMALIZATION, cpu_normalization.normalization_of, _derivable, _elsewhere, _fake, _vmap)
_register(
    NORMALIZATION_,
    cpu_normalization.normalize_in_place,
    _derivable_in_place,
    _elsewhere_in_place,
    _fake_in_place,
    _vmap_in_place,
)
_LIBRARY.impl(_IN_PLACE_NAME, _noting_the_change, "ADInplaceOrView")
