"""Torch's functions by what they compute: nodes of a graph as convolutions, norms and steps behind them."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.nn import functional

from tvm_conv3d.spec import post_ops
from tvm_conv3d.spec.normalization import PRELU
from tvm_conv3d.torch.arguments import DTYPES, explicit_padding, three
from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.convolution import CONVOLUTION


class Convolution(NamedTuple):
    """A convolution's operands and arguments, as :class:`tvm_conv3d.torch.operators.geometry.Geometry` has them."""

    input: Node
    weight: Node
    bias: Node | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Norm(NamedTuple):
    """A norm over all positions.

    Attributes:
        input: what is normalised.
        groups: of channels with common statistics.
        mean, variance: given statistics; None where they are the input's own.
        weight, bias: of each channel, or None.
        epsilon: added to variances.
    """

    input: Node
    groups: int
    mean: Node | None
    variance: Node | None
    weight: Node | None
    bias: Node | None
    epsilon: float


class Step(NamedTuple):
    """One post-op.

    Attributes:
        text: as of :mod:`tvm_conv3d.spec.post_ops`, or :data:`PRELU`.
        residual: what is added.
        slope: of :data:`PRELU`.
    """

    text: str
    residual: Node | None = None
    slope: Node | None = None


def convolution_of(node: Node) -> Convolution | None:
    """The 3-D convolution of a batch that a node computes; None where it computes something else."""
    given = bound(node, _CONVOLUTIONS)
    if given is None or not is_volume(given["input"]):
        return None
    weight = info(given["weight"])
    if weight is None or len(weight.shape) != 5:
        return None
    dilation = three(given["dilation"])
    return Convolution(
        given["input"],
        given["weight"],
        given["bias"],
        three(given["stride"]),
        explicit_padding(given["padding"], weight.shape[2:], dilation),
        dilation,
        given.get("transposed", node.target is torch.conv_transpose3d),
        three(given.get("output_padding", 0)),
        given["groups"],
    )


def padding_by_itself(found: Convolution) -> Convolution:
    """A convolution that itself adds the zeros around its input: those of causal ones, or of TensorFlow's "same"."""
    while not found.transposed:
        given = bound(found.input, PADS)
        if given is None or (given["mode"], given["value"] or 0) != ("constant", 0) or not is_volume(given["input"]):
            break
        more = given["pad"]
        if len(more) > 6 or not all(isinstance(pad, int) and pad >= 0 for pad in more):
            break
        # torch's pads begin with the last axis, and leave out the first
        axes = [more[place : place + 2] for place in range(0, len(more), 2)]
        pads = [(0, 0)] * (3 - len(axes)) + axes[::-1]
        own = found.padding if len(found.padding) == 6 else [pad for pad in found.padding for _ in range(2)]
        padding = tuple(pad + other for pad, other in zip(own, itertools.chain(*pads), strict=True))
        found = found._replace(input=given["input"], padding=padding)
    return found


def norm_of(node: Node) -> Norm | None:
    """The norm that a node computes, where it does as in inference; None where it computes something else."""
    given = bound(node, _NORMS)
    if given is None or not is_volume(given["input"]):
        return None
    of = info(given["input"])
    channels = None if of is None else of.shape[1]
    if of is None or not isinstance(channels, int):
        return None
    affine = (given["weight"], given["bias"], given["eps"])
    if node.target is functional.group_norm:
        if given["num_groups"] == channels and all(extent == 1 for extent in of.shape[2:]):
            # what torch refuses as an instance norm
            return None
        return Norm(given["input"], given["num_groups"], None, None, *affine)
    if given.get("use_input_stats", False):
        return Norm(given["input"], channels, None, None, *affine)
    mean, variance = given["running_mean"], given["running_var"]
    if given.get("training", False) or mean is None or variance is None:
        return None
    return Norm(given["input"], channels, mean, variance, *affine)


def step_of(node: Node, value: Node) -> Step | None:
    """What a node does to `value`, its one use, where an epilogue can do it."""
    given = bound(node, SUMS)
    if given is not None:
        other = given["other"] if given["input"] is value else given["input"]
        return Step(post_ops.ADD, other) if given["alpha"] == 1 and _alike(value, other) else None
    given = bound(node, _STEPS)
    if given is None or given["input"] is not value or not _is_float(value):
        return None
    if node.target is torch.prelu:
        slope = info(given["weight"])
        return Step(PRELU, slope=given["weight"]) if slope is not None and slope.shape == (1,) else None
    text = _ACTIVATIONS[node.target](given)
    return Step(text) if text is not None and _pays(text, value) else None


def sum_of(node: Node) -> tuple[Node, Node] | None:
    """The operands of a sum of two different volumes of one shape and type; None where a node is something else."""
    given = bound(node, SUMS)
    if given is None or given["alpha"] != 1 or not is_volume(given["input"]):
        return None
    return (given["input"], given["other"]) if _alike(given["input"], given["other"]) else None


def is_volume(node: Any) -> bool:
    """Whether a node is a batch of volumes, (batch, channels, depth, height, width), that our operators take."""
    of = info(node) if isinstance(node, Node) else None
    return of is not None and len(of.shape) == 5 and of.dtype in DTYPES and of.device.type == "cpu"


def bound(node: Node, signatures: Mapping[Any, inspect.Signature]) -> dict[str, Any] | None:
    """The arguments of a node by name, defaults included; None where its function is none of these."""
    if node.op != "call_function" or node.target not in signatures:
        return None
    try:
        found = signatures[node.target].bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    found.apply_defaults()
    return found.arguments


def _is_float(node: Node) -> bool:
    of = info(node)
    return of is not None and of.dtype in DTYPES


def _pays(text: str, value: Node) -> bool:
    """Whether a step of `value` is one that a chain can have, and no slower there than torch's own function."""
    of = info(value)
    try:
        by_library = post_ops.PostOp.parse(text).name in _BY_LIBRARY
    except ValueError:
        # a parameter that no chain can have
        return False
    return not (by_library and of is not None and of.dtype == torch.float64)


def _alike(value: Node, other: Any) -> bool:
    """Whether `other` is another tensor of the shape and type of `value`."""
    if not isinstance(other, Node) or other is value:
        return False
    a, b = info(value), info(other)
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype


_PAD = inspect.signature(lambda input, pad, mode="constant", value=None: ...)
#: Dynamo looks into the first, and sees the second.
PADS = {functional.pad: _PAD, torch._C._nn.pad: _PAD}

#: Arguments of functions that tell Python nothing of them; of others `inspect` knows.
_CONVOLUTIONS = {
    CONVOLUTION: inspect.signature(
        lambda input, weight, bias, stride, padding, dilation, transposed, output_padding, groups: ...
    ),
    torch.conv3d: inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: ...),
    torch.conv_transpose3d: inspect.signature(
        lambda input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1: ...
    ),
}
_NORMS = {
    function: inspect.signature(function)
    for function in (functional.batch_norm, functional.instance_norm, functional.group_norm)
}
_SUM = inspect.signature(lambda input, other, *, alpha=1: ...)
#: Sums of two.
SUMS = dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, operator.add), _SUM)

#: Steps that call a function of the C library for each element in float64, where torch has vectors.
_BY_LIBRARY = ("silu", "gelu", "sigmoid", "tanh", "elu", "celu", "selu", "mish", "softplus", "log_sigmoid")

#: From this threshold on torch's softplus is that of the definition, to the last bit in float32.
_SOFTPLUS_THRESHOLD = 20

#: Each activation that an epilogue does in passing, and its step, of its arguments; None where it is none.
_ACTIVATIONS: dict[Any, Callable[[dict[str, Any]], str | None]] = {
    functional.relu: lambda given: "relu",
    torch.relu: lambda given: "relu",
    torch.Tensor.relu: lambda given: "relu",
    functional.relu6: lambda given: "relu6",
    functional.leaky_relu: lambda given: f"leaky_relu:{given['negative_slope']!r}",
    functional.hardsigmoid: lambda given: "hard_sigmoid",
    functional.hardswish: lambda given: "hard_silu",
    functional.hardtanh: lambda given: f"hard_tanh:{given['min_val']!r}:{given['max_val']!r}",
    functional.softsign: lambda given: "softsign",
    functional.silu: lambda given: "silu",
    functional.gelu: lambda given: f"gelu:{given['approximate']}",
    functional.sigmoid: lambda given: "sigmoid",
    torch.sigmoid: lambda given: "sigmoid",
    torch.Tensor.sigmoid: lambda given: "sigmoid",
    functional.tanh: lambda given: "tanh",
    torch.tanh: lambda given: "tanh",
    torch.Tensor.tanh: lambda given: "tanh",
    functional.elu: lambda given: f"elu:{given['alpha']!r}",
    functional.celu: lambda given: f"celu:{given['alpha']!r}",
    functional.selu: lambda given: "selu",
    functional.mish: lambda given: "mish",
    functional.logsigmoid: lambda given: "log_sigmoid",
    functional.softplus: lambda given: (
        f"softplus:{given['beta']!r}" if given["threshold"] >= _SOFTPLUS_THRESHOLD else None
    ),
}
_UNARY = inspect.signature(lambda input: ...)
_STEPS = {
    **{function: inspect.signature(function) if inspect.isfunction(function) else _UNARY for function in _ACTIVATIONS},
    functional.gelu: inspect.signature(lambda input, *, approximate="none": ...),
    functional.softplus: inspect.signature(lambda input, beta=1, threshold=20: ...),
    torch.prelu: inspect.signature(lambda input, weight: ...),
}
