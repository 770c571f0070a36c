"""A graph of TorchScript as a program in Python: steps, what each takes and makes, and what ends with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

#: What a node says that has no schema.
NO_SCHEMA = "(no schema)"


class RefusedError(Exception):
    """A script can't be noted; the message says why. Nothing but its own values has been changed until then."""


class Constant(NamedTuple):
    """A constant of a script; frozen modules hold their weights so.

    Attributes:
        value: of it.
        name: that torch.jit gave it, as "self.encoder.weight".
    """

    value: Any
    name: str


@dataclass(frozen=True)
class Step:
    """A node.

    Attributes:
        kind: as "aten::add".
        schema: of its operator, in words.
        inputs, outputs: numbers of values.
        blocks: of `prim::If` and `prim::Loop`.
        detail: the :class:`Constant`, or the name of the attribute that it reads.
        ended: numbers of values of its block that nobody uses afterwards.
    """

    kind: str
    schema: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    blocks: tuple[Block, ...]
    detail: Any
    ended: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Nodes in their order, and numbers of the values that come in and go out."""

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def uses(self) -> Iterator[int]:
        """All values that are used within it, with repetitions."""
        yield from self.outputs
        for step in self.steps:
            yield from step.inputs
            for block in step.blocks:
                yield from block.uses()


def program(graph: Any) -> Block:
    """The program of a `torch._C.Graph`, or of a block of one."""
    nodes = list(graph.nodes())
    inputs, outputs = _numbers(graph.inputs()), _numbers(graph.outputs())
    own = {*inputs, *(number for node in nodes for number in _numbers(node.outputs()))}
    used, steps = set(outputs), []
    for node in reversed(nodes):
        blocks = tuple(map(program, node.blocks()))
        touched = {*_numbers(node.inputs()), *_numbers(node.outputs())}
        touched.update(use for block in blocks for use in block.uses())
        ended = tuple((touched & own) - used)
        used |= touched
        steps.append(_step(node, blocks, ended))
    return Block(inputs, tuple(reversed(steps)), outputs)


def _step(node: Any, blocks: Sequence[Block], ended: Sequence[int]) -> Step:
    kind, detail = node.kind(), None
    if kind == "prim::Constant":
        detail = Constant(node.output().toIValue(), node.output().debugName())
    elif kind in ("prim::GetAttr", "prim::SetAttr"):
        detail = node.s("name")
    inputs, outputs = _numbers(node.inputs()), _numbers(node.outputs())
    return Step(kind, str(node.schema()), inputs, outputs, tuple(blocks), detail, tuple(ended))


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(value.unique() for value in values)
