"""Functions that write into their arguments: what they write, and graphs without them.

Only a graph of functions without side effects may be rewritten: a convolution must not move behind a function that
writes into its input.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.torch.graph.tensors import info, set_info


def with_elements(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """A copy of a tensor in which elements are set."""
    return set_elements(tensor.clone(), index, value)


def set_elements(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """The tensor itself, in which elements are set."""
    tensor[index] = value
    return tensor


#: Functions that set elements, and return nothing.
SETTERS = (torch.Tensor.__setitem__, operator.setitem)

#: Methods `name_` whose function without side effects is `name`.
_METHODS = (
    *("add", "sub", "mul", "div", "pow", "addcmul", "addcdiv", "lerp"),
    *("relu", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max", "masked_fill"),
    *("neg", "abs", "exp", "log", "sin", "cos", "sqrt", "rsqrt", "square", "reciprocal", "floor", "round"),
)

#: Each function that writes into its first argument, and what computes the same elsewhere.
FUNCTIONAL: dict[Any, Any] = {
    **{getattr(torch.Tensor, f"{name}_"): getattr(torch, name) for name in _METHODS},
    **{getattr(torch.Tensor, f"__i{name}__"): getattr(torch, name) for name in ("add", "sub", "mul")},
    torch.Tensor.__itruediv__: torch.div,
    operator.iadd: torch.add,
    operator.isub: torch.sub,
    operator.imul: torch.mul,
    operator.itruediv: torch.div,
    operator.ipow: torch.pow,
    torch.relu_: torch.relu,
    functional.leaky_relu_: functional.leaky_relu,
    functional.elu_: functional.elu,
    functional.hardtanh_: functional.hardtanh,
    torch.celu_: torch.celu,
    torch.selu_: torch.selu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    **dict.fromkeys(SETTERS, with_elements),
}

#: Methods that write and whose names do not end as those of others do.
_OPERATORS = (
    "setitem",
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "ipow",
    "imod",
    "imatmul",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
)
_WRITING = frozenset((*_OPERATORS, *(f"__{name}__" for name in _OPERATORS)))
_NORMS = (functional.batch_norm, functional.instance_norm, torch.batch_norm, torch.instance_norm)

_KEPT = "tvm_conv3d.in_place"


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument, tensor or node, that a function writes into; None where it writes into none."""
    out = kwargs.get("out")
    if out is not None:
        return out
    if func in _NORMS:
        return _updated(func, args, kwargs)
    if isinstance(func, torch._ops.OpOverload):
        return _written_by(func, args, kwargs)
    name = getattr(func, "__name__", "")
    private = name.endswith("__")
    if func in FUNCTIONAL or name in _WRITING or (name.endswith("_") and not private) or _inplace(func, args, kwargs):
        return args[0] if args else next(iter(kwargs.values()), None)
    return None


def _written_by(operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument that an operator's schema says is written."""
    for number, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[number] if number < len(args) else kwargs.get(argument.name)
    return None


def _updated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The running mean that a norm brings up to date; None where it leaves it as it is."""
    if not inspect.isfunction(func):
        # torch.batch_norm(input, weight, bias, running_mean, running_var, training, ...), and instance_norm likewise
        return args[3] if len(args) > 5 and args[5] else None
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    updates = given.get("training", False) if func is functional.batch_norm else given.get("use_input_stats", True)
    return given.get("running_mean") if updates else None


def _inplace(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the argument `inplace` of a function of `torch.nn.functional` is set."""
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    if not inspect.isfunction(func):
        return False
    names = list(inspect.signature(func).parameters)
    return "inplace" in names and len(args) > names.index("inplace") and bool(args[names.index("inplace")])


def remove(graph: Graph) -> str | None:
    """Replaces functions that write into their arguments by what computes the same elsewhere.

    Returns:
        None, or why there are some left: what they write into may be seen by others, or they are not known.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        target = written(node.target, node.args, node.kwargs)
        if target is None:
            continue
        replacement = _functional(node)
        if replacement is None or not isinstance(target, Node):
            return f"{getattr(node.target, '__name__', node.target)} writes into a tensor"
        if _seen_elsewhere(graph, node, target):
            return f"{getattr(node.target, '__name__', node.target)} writes into memory that other tensors share"
        node.meta[_KEPT] = set_elements if node.target in SETTERS else node.target
        node.target, node.args, node.kwargs = replacement
        # whoever asks for the old tensor later sees what was written
        target.replace_all_uses_with(node, delete_user_cb=_behind(graph, node).__contains__)
    return None


def _functional(node: Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Target and arguments of the function that computes the same elsewhere."""
    found, of = FUNCTIONAL.get(node.target) or _out_of_place(node.target), info(node)
    if node.target in SETTERS and isinstance(node.args[0], Node):
        # what is set is cast to the tensor's type
        set_info(node, info(node.args[0]))
        return found, node.args, dict(node.kwargs)
    others = [info(other) for other in node.all_input_nodes]
    # masks are cast to the type of what they are used with
    if of is None or any(other is None or other.dtype not in (of.dtype, torch.bool) for other in others):
        return None
    if found is not None:
        return found, node.args, dict(node.kwargs)
    if "out" in node.kwargs or not _inplace(node.target, node.args, node.kwargs):
        return None
    _set_inplace(node, False)
    return node.target, node.args, dict(node.kwargs)


def _out_of_place(target: Any) -> Any:
    """The operator `name` of torch's own for an operator `name_`; None where there is none."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    _, _, name = target._schema.name.partition("::")
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _set_inplace(node: Node, value: bool) -> None:
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.arguments["inplace"] = value
    node.args, node.kwargs = bound.args, bound.kwargs


def _seen_elsewhere(graph: Graph, node: Node, target: Node) -> bool:
    """Whether anything but the written tensor itself shows what is written."""
    behind, of = _behind(graph, node), info(target)
    if of is None or target.op != "call_function":
        return True
    for other in graph.nodes:
        if other is node:
            break
        known = info(other)
        shares = known is not None and known.storage == of.storage and other is not target
        if shares and other.op in ("placeholder", "get_attr"):
            return True
        if shares and any(user in behind for user in other.users):
            return True
    return False


def _behind(graph: Graph, node: Node) -> set[Node]:
    nodes = list(graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def restore(graph: Graph, fresh: frozenset[Any]) -> None:
    """Lets functions write where they did before, where nobody else sees what they write into.

    Args:
        graph: of functions without side effects.
        fresh: functions whose results share memory with nothing.
    """
    for node in graph.nodes:
        before = node.meta.get(_KEPT)
        source = node.args[0] if before is not None and node.args else None
        if not isinstance(source, Node) or source.target not in fresh or len(source.users) != 1:
            continue
        if before is node.target:
            _set_inplace(node, True)
        else:
            node.target = before
