"""Convolutions of concatenations as sums of convolutions, so that the largest volume of a U-Net is never made.

`conv(cat(a, b), w)` is `conv(a, w[:, :n]) + conv(b, w[:, n:])`, the sum being the last convolution's residual operand.
Neither the concatenation's memory nor the time to write and read it is needed. Parts that are there earlier are
convolved before the last one is made: a U-Net's skip is gone when its decoder's volume comes, and the sum is written
over.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch
from torch.fx import Graph, Node

from tvm_conv3d.spec import post_ops
from tvm_conv3d.torch.graph.convolutions import Call
from tvm_conv3d.torch.graph.tensors import info, set_info
from tvm_conv3d.torch.operators.composition import Epilogue
from tvm_conv3d.torch.operators.concatenation import CONCATENATION
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION

#: Where it was faster, by 4 to 15 %: concatenations of this many bytes, and this many times the weights', whose parts
#: fill vectors of channels (two threads of a Zen 4, 2026-11-27; at 4 times the weights it was 2 % slower).
_MIN_BYTES, _TIMES_WEIGHTS, _MIN_CHANNELS = 8 << 20, 8, 16


def split_convolutions(graph: Graph) -> None:
    """Lets convolutions read the parts of a concatenation that nothing else reads, where that is faster."""
    for node in list(graph.nodes):
        if node.target is not FUSED_CONVOLUTION:
            continue
        whole = node.args[0]
        if whole.target is CONCATENATION and len(whole.users) == 1 and _is_worth_it(node, whole.args[0]):
            _split(graph, node, whole.args[0])
            graph.erase_node(node)
            graph.erase_node(whole)


def _is_worth_it(node: Node, parts: list[Node]) -> bool:
    call = Call.of(node)
    of, kernel, sources = info(node), info(call.weight), [info(part) for part in parts]
    if of is None or kernel is None or call.geometry.transposed or call.geometry.groups != 1:
        return False
    if call.epilogue.residual is not None:
        return False
    # half types would be rounded between the sums
    if of.dtype not in (torch.float32, torch.float64) or any(source is None for source in sources):
        return False
    channels = [source.shape[1] for source in sources if source is not None]
    filters, nbytes = kernel.shape[0], sum(source.nbytes for source in sources if source is not None)
    # each sum is written and read once, as the concatenation was
    return (
        min(channels) >= _MIN_CHANNELS
        and filters * (len(parts) - 1) <= sum(channels)
        and nbytes >= max(_MIN_BYTES, _TIMES_WEIGHTS * kernel.nbytes)
    )


def _split(graph: Graph, node: Node, parts: list[Node]) -> None:
    call, order = Call.of(node), list(graph.nodes)
    epilogue = call.epilogue
    *earlier, (first, last) = sorted(_with_first_channels(parts), key=lambda each: order.index(each[1]))
    sums: Node | None = None
    with graph.inserting_before(_early(graph, node, call, last)):
        for number, part in earlier:
            scale = _without_shift(graph, epilogue.batch_norm)
            given = Epilogue(scale, epilogue.epsilon, sums, None, [] if sums is None else [post_ops.ADD])
            sums = set_info(_of_part(graph, call, part, number, None, given), info(node))
    with graph.inserting_before(node):
        given = epilogue._replace(residual=sums, post_ops=[post_ops.ADD, *epilogue.post_ops])
        sums = set_info(_of_part(graph, call, last, first, call.bias, given), info(node))
    node.replace_all_uses_with(sums)


def _with_first_channels(parts: list[Node]) -> Iterator[tuple[int, Node]]:
    """Each part with the number of its first channel in the concatenation."""
    first = 0
    for part in parts:
        yield first, part
        first += info(part).shape[1]  # type: ignore[union-attr]


def _early(graph: Graph, node: Node, call: Call, last: Node) -> Node:
    """Before which node all parts but the last can be convolved: before the last, where the weights are there.

    Those that the module holds are looked up there.
    """
    weights = [each for each in call.weights if each is not None]
    if last.op != "call_function" or any(each.op not in ("get_attr", "placeholder") for each in weights):
        return node
    before = set(takewhile(lambda each: each is not last, graph.nodes))
    for each in weights:
        if each not in before:
            last.prepend(each)
    return last


def _of_part(graph: Graph, call: Call, part: Node, first: int, bias: Node | None, epilogue: Epilogue) -> Node:
    """The convolution of a part, which begins with channel `first`."""
    kernel = _of_channels(graph, call.weight, first, info(part).shape[1])  # type: ignore[union-attr]
    return graph.call_function(FUSED_CONVOLUTION, (part, kernel, bias, *epilogue, *call.geometry))


def _without_shift(graph: Graph, batch_norm: Any) -> list[Node | None]:
    """Mean, variance, weight and bias of a batch norm that scales as the given one, and adds nothing."""
    if not batch_norm:
        return []
    mean, variance, weight, _ = batch_norm
    return [set_info(graph.call_function(torch.zeros_like, (mean,)), info(mean)), variance, weight, None]


def _of_channels(graph: Graph, weight: Node, first: int, count: int) -> Node:
    """The part of a convolution's weights that belongs to some of its input's channels."""
    of = info(weight)
    part = graph.call_function(torch.narrow, (weight, 1, first, count))
    return set_info(part, of._replace(shape=(of.shape[0], count, *of.shape[2:])))  # type: ignore[union-attr]
