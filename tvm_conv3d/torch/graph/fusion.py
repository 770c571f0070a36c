"""Convolutions and norms with all that follows them, as one of this package's operators each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from tvm_conv3d.spec import post_ops
from tvm_conv3d.torch.graph.patterns import (
    PADS,
    Convolution,
    Norm,
    Step,
    convolution_of,
    norm_of,
    padding_by_itself,
    step_of,
)
from tvm_conv3d.torch.graph.tensors import info, set_info
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION
from tvm_conv3d.torch.operators.normalization import NORMALIZATION


@dataclass
class _Chain:
    """What follows a node, one use after the other.

    Attributes:
        nodes: the node, and those that follow it.
        batch_norm: the first that follows, with given statistics.
        steps: the others.
    """

    nodes: list[Node]
    batch_norm: Norm | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def last(self) -> Node:
        """The node whose value the chain computes."""
        return self.nodes[-1]

    @property
    def operands(self) -> tuple[Node | None, Node | None, list[str]]:
        """Residual, slope and texts, as operators take them."""
        residual = next((step.residual for step in self.steps if step.residual is not None), None)
        slope = next((step.slope for step in self.steps if step.slope is not None), None)
        return residual, slope, [step.text for step in self.steps]


def fuse_convolutions(graph: Graph) -> None:
    """Each convolution, zeros around its input, a batch norm, activations and a residual sum behind it become one."""
    for node in list(graph.nodes):
        found = convolution_of(node)
        if found is not None:
            chain = _follow(node, with_batch_norm=True)
            _replace(graph, chain, FUSED_CONVOLUTION, _convolution_arguments(padding_by_itself(found), chain))
    for node in reversed(graph.nodes):
        if node.target in PADS and not node.users:
            graph.erase_node(node)


def fuse_norms(graph: Graph) -> None:
    """Each norm, activations and a residual sum behind it become one operator."""
    for node in list(graph.nodes):
        found = norm_of(node)
        if found is not None:
            chain = _follow(node, with_batch_norm=False)
            _replace(graph, chain, NORMALIZATION, (*_norm_operands(found), *chain.operands))


def _convolution_arguments(found: Convolution, chain: _Chain) -> tuple[Any, ...]:
    norm = chain.batch_norm
    vectors = [] if norm is None else [norm.mean, norm.variance, norm.weight, norm.bias]
    epsilon = 0.0 if norm is None else norm.epsilon
    input, weight, bias, *geometry = found
    return (input, weight, bias, vectors, epsilon, *chain.operands, *map(_plain, geometry))


def _norm_operands(found: Norm) -> tuple[Any, ...]:
    return found.input, found.groups, found.mean, found.variance, found.weight, found.bias, found.epsilon


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _follow(node: Node, with_batch_norm: bool) -> _Chain:
    """The longest chain behind a node of which nobody else sees an intermediate value."""
    chain = _Chain([node])
    while len(chain.last.users) == 1:
        user = next(iter(chain.last.users))
        norm = norm_of(user) if with_batch_norm and not chain.steps and chain.batch_norm is None else None
        if norm is not None and norm.mean is not None and norm.input is chain.last:
            chain.batch_norm = norm
        else:
            step = step_of(user, chain.last)
            if step is None or any(_same_operand(step, earlier) for earlier in chain.steps):
                break
            chain.steps.append(step)
        chain.nodes.append(user)
    return chain


def _same_operand(step: Step, earlier: Step) -> bool:
    """Whether both need the one residual operand, or the one slope, that an operator has."""
    both_add = step.text == earlier.text == post_ops.ADD
    return both_add or (step.slope is not None and earlier.slope is not None)


def _replace(graph: Graph, chain: _Chain, operator: Any, arguments: tuple[Any, ...]) -> None:
    """Puts the operator in the place of a chain's last node, where all its operands are known."""
    with graph.inserting_before(chain.last):
        made = graph.call_function(operator, arguments)
    set_info(made, info(chain.last))
    chain.last.replace_all_uses_with(made)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
