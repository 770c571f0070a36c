"""Operators of TorchScript as the functions that a module's own Python code calls for the same, which patterns know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from tvm_conv3d.torch.graph.script.program import NO_SCHEMA, RefusedError, Step


class Call(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(step: Step, values: Sequence[Any]) -> Call:
    """The call of a step's operator.

    Args:
        step: of a script.
        values: all that its operator takes.

    Raises:
        RefusedError: it is no operator, draws random numbers, or changes statistics.
    """
    if step.schema == NO_SCHEMA:
        raise RefusedError(f"{step.kind} is not known")
    schema = torch._C.parse_schema(step.schema)
    if len(schema.arguments) != len(values):
        raise RefusedError(f"{step.kind} takes any number of arguments")
    given = {argument.name: value for argument, value in zip(schema.arguments, values, strict=True)}
    operator = _operator(schema)
    if torch.Tag.nondeterministic_seeded in operator.tags and _draws(given):
        raise RefusedError(f"{step.kind} draws random numbers")
    # operators of numbers have names of operators of tensors
    of_tensors = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(given))
    made = _FUNCTIONS[schema.name](given) if of_tensors and schema.name in _FUNCTIONS else None
    if made is not None:
        return made
    if given.get("running_mean") is not None and given.get("training"):
        raise RefusedError(f"{step.kind} brings statistics up to date")
    args = tuple(given[argument.name] for argument in schema.arguments if not argument.kwarg_only)
    return Call(operator, args, {each.name: given[each.name] for each in schema.arguments if each.kwarg_only})


def _operator(schema: Any) -> Any:
    space, _, name = schema.name.partition("::")
    return getattr(getattr(getattr(torch.ops, space), name), schema.overload_name or "default")


def _draws(given: dict[str, Any]) -> bool:
    """Whether an operator that may draw random numbers does."""
    return given.get("dropout_p") != 0 and given.get("train", given.get("training")) is not False


def _named(function: Callable[..., Any], *names: str, **renamed: str) -> Callable[[dict[str, Any]], Call]:
    """The function of arguments of these names, then of some that it calls otherwise than the operator."""
    return lambda given: Call(
        function,
        tuple(given[name] for name in names),
        {mine: given[theirs] for mine, theirs in renamed.items()},
    )


def _inplace(function: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Call]:
    return lambda given: Call(function, tuple(given[name] for name in names), {"inplace": True})


def _convolution(given: dict[str, Any]) -> Call | None:
    """What traces have for all convolutions alike."""
    if given["weight"].dim() != 5:
        return None
    names = ("input", "weight", "bias", "stride", "padding")
    if given["transposed"]:
        return _named(torch.conv_transpose3d, *names, "output_padding", "groups", "dilation")(given)
    return _named(torch.conv3d, *names, "dilation", "groups")(given)


def _interpolation(mode: str) -> Callable[[dict[str, Any]], Call | None]:
    def call(given: dict[str, Any]) -> Call | None:
        if "scale_factors" not in given:
            # the other form takes sizes and scales both
            return None
        factors, align = given["scale_factors"], given.get("align_corners")
        return Call(functional.interpolate, (given["input"], given["output_size"], factors, mode, align), {})

    return call


def _view(given: dict[str, Any]) -> Call | None:
    return Call(torch.Tensor.view, (given["self"], given["size"]), {}) if "size" in given else None


def _contiguous(given: dict[str, Any]) -> Call | None:
    # formats are numbers here, and 0 is the plain one
    return None if given["memory_format"] else Call(torch.Tensor.contiguous, (given["self"],), {})


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias")
_DROPOUT = _named(functional.dropout, "input", "p", "train")
_POOL = ("self", "kernel_size", "stride", "padding")

#: By name. All others are called as they are.
_FUNCTIONS: dict[str, Callable[[dict[str, Any]], Call | None]] = {
    "aten::_convolution": _convolution,
    "aten::convolution": _convolution,
    "aten::conv3d": _named(torch.conv3d, "input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "aten::conv_transpose3d": _named(
        torch.conv_transpose3d,
        *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "aten::batch_norm": _named(functional.batch_norm, *_BATCH_NORM, "training", "momentum", "eps"),
    "aten::instance_norm": _named(functional.instance_norm, *_BATCH_NORM, "use_input_stats", "momentum", "eps"),
    "aten::group_norm": _named(functional.group_norm, "input", "num_groups", "weight", "bias", "eps"),
    "aten::relu": _named(torch.relu, "self"),
    "aten::relu_": _named(torch.relu_, "self"),
    "aten::prelu": _named(torch.prelu, "self", "weight"),
    "aten::leaky_relu": _named(functional.leaky_relu, "self", "negative_slope"),
    "aten::leaky_relu_": _named(functional.leaky_relu_, "self", "negative_slope"),
    "aten::hardtanh": _named(functional.hardtanh, "self", "min_val", "max_val"),
    "aten::hardtanh_": _named(functional.hardtanh_, "self", "min_val", "max_val"),
    "aten::relu6": _named(functional.relu6, "self"),
    "aten::relu6_": _inplace(functional.relu6, "self"),
    "aten::hardsigmoid": _named(functional.hardsigmoid, "self"),
    "aten::hardsigmoid_": _inplace(functional.hardsigmoid, "self"),
    "aten::hardswish": _named(functional.hardswish, "self"),
    "aten::hardswish_": _inplace(functional.hardswish, "self"),
    "aten::add": _named(torch.add, "self", "other", alpha="alpha"),
    "aten::add_": _named(torch.Tensor.add_, "self", "other", alpha="alpha"),
    "aten::cat": _named(torch.cat, "tensors", "dim"),
    "aten::max_pool3d": _named(functional.max_pool3d, *_POOL, "dilation", "ceil_mode"),
    "aten::avg_pool3d": _named(
        functional.avg_pool3d, *_POOL, "ceil_mode", "count_include_pad", divisor_override="divisor_override"
    ),
    "aten::upsample_nearest3d": _interpolation("nearest"),
    "aten::upsample_trilinear3d": _interpolation("trilinear"),
    "aten::dropout": _DROPOUT,
    "aten::feature_dropout": _DROPOUT,
    "aten::alpha_dropout": _DROPOUT,
    "aten::feature_alpha_dropout": _DROPOUT,
    "aten::view": _view,
    "aten::contiguous": _contiguous,
}
