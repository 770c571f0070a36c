"""A frozen TensorFlow graph in, a short list of steps out.

:func:`lower` follows the graph from its output back to its input for one input shape. What is known beforehand
(weights, the `training` switch, the arithmetic of shapes) is evaluated here, branches that are not taken fall away,
and bias and activation join the convolution before them. What remains is a list of convolutions, transposed
convolutions, max-pools and concatenations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from tvm_conv3d.demo.errors import DemoError

Shape = tuple[int, ...]
Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation that runs: its name is the name of its result, of shape `shape` (N, D, H, W, C)."""

    name: str
    shape: Shape
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Convolution(Step):
    """A convolution; `kernel` is (kd, kh, kw, channels, filters), `padding` is `same` or `valid`."""

    kernel: np.ndarray
    strides: Triple
    dilation: Triple
    padding: str
    bias: np.ndarray | None = None
    activation: str = "linear"


@dataclass(frozen=True, eq=False)
class TransposedConvolution(Step):
    """The gradient of a convolution; `kernel` is (kd, kh, kw, filters, channels) as TensorFlow stores it."""

    kernel: np.ndarray
    strides: Triple
    padding: str
    bias: np.ndarray | None = None
    activation: str = "linear"


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """The maximum of windows that neither overlap nor leave a rest."""

    window: Triple


@dataclass(frozen=True, eq=False)
class Concat(Step):
    """The sources side by side along the channels."""


@dataclass(frozen=True)
class Program:
    """What :func:`lower` returns: the steps in the order in which they run; the last one is the output."""

    input: str
    input_shape: Shape
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _Symbol:
    """A value that is only known when the network runs."""

    name: str
    shape: Shape


class _Dead:
    """A value of a branch that is not taken."""


_DEAD = _Dead()


def lower(frozen: bytes, output: str, inputs: Mapping[str, Shape], constants: Mapping[str, Any]) -> Program:
    """The steps that compute node `output`.

    Args:
        frozen: a serialized `GraphDef` whose variables are constants.
        output: name of the node wanted.
        inputs: name and shape (N, D, H, W, C) of the one input.
        constants: values of other placeholders, for instance `{"training": False}`.

    Raises:
        DemoError: `frozen` is no graph, lacks a node, or needs an operation that is not understood.
    """
    nodes = _parse(frozen)
    for name in (output, *inputs, *constants):
        if name not in nodes:
            raise DemoError(f"The graph has no node {name!r}. It has {len(nodes)} nodes, the last is {[*nodes][-1:]}.")
    known: dict[str, Any] = {name: np.asarray(value) for name, value in constants.items()}
    known |= {name: _Symbol(name, tuple(shape)) for name, shape in inputs.items()}
    lowering = _Lowering(nodes, known, output)
    ((name, shape),) = inputs.items()
    return Program(name, tuple(shape), lowering.run())


def _parse(frozen: bytes) -> dict[str, Any]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    try:
        graph.ParseFromString(frozen)
    except DecodeError as error:
        raise DemoError(f"Not a frozen TensorFlow graph ({len(frozen)} bytes): {error}") from error
    return {node.name: node for node in graph.node}


def _split(reference: str) -> tuple[str, int]:
    """Node and output number of a reference such as `^node`, `node` or `node:1`."""
    name, _, port = reference.lstrip("^").partition(":")
    return name, int(port or 0)


class _Lowering:
    """One walk over the graph; `values` holds, for each node seen, its outputs."""

    def __init__(self, nodes: dict[str, Any], known: dict[str, Any], output: str) -> None:
        self.nodes = nodes
        self.values: dict[str, tuple[Any, ...]] = {name: (value,) for name, value in known.items()}
        self.steps: dict[str, Step] = {}
        self.output = output
        self.needed = self._ancestors(output)

    def run(self) -> tuple[Step, ...]:
        for name in TopologicalSorter(self.needed).static_order():
            if name not in self.values:
                self.values[name] = self._evaluate(self.nodes[name])
        result = self.values[self.output][0]
        if not isinstance(result, _Symbol) or result.name not in self.steps:
            raise DemoError(f"Node {self.output!r} does not depend on the input.")
        return self._in_order(result.name)

    def _ancestors(self, output: str) -> dict[str, set[str]]:
        """Every node that `output` depends on, with the nodes it depends on itself; known values are leaves."""
        found: dict[str, set[str]] = {}
        pending = [output]
        while pending:
            name = pending.pop()
            if name in found:
                continue
            if name not in self.nodes:
                raise DemoError(f"The graph refers to node {name!r}, which it does not have.")
            references = () if name in self.values else self.nodes[name].input
            found[name] = {_split(reference)[0] for reference in references}
            pending.extend(found[name])
        return found

    def _in_order(self, last: str) -> tuple[Step, ...]:
        """The steps that `last` depends on; those of no use to it are left out."""
        edges: dict[str, tuple[str, ...]] = {}
        pending = [last]
        while pending:
            name = pending.pop()
            if name in self.steps and name not in edges:
                edges[name] = self.steps[name].sources
                pending.extend(edges[name])
        return tuple(self.steps[name] for name in TopologicalSorter(edges).static_order() if name in self.steps)

    def _evaluate(self, node: Any) -> tuple[Any, ...]:
        arguments = []
        for reference in node.input:
            name, port = _split(reference)
            outputs = self.values[name]
            # A control dependency carries no number; it is dead with its whole node.
            arguments.append((reference.startswith("^"), outputs[min(port, len(outputs) - 1)]))
        live = [value for _, value in arguments if value is not _DEAD]
        if node.op == "Merge":
            return (live[0] if live else _DEAD,)
        if len(live) < len(arguments):
            return (_DEAD, _DEAD)
        data = [value for control, value in arguments if not control]
        kinds = "".join("x" if isinstance(value, _Symbol) else "c" for value in data)
        wanted, handler = _OPERATIONS.get(node.op, (None, None))
        if handler is None or re.fullmatch(wanted or "", kinds) is None:
            raise DemoError(
                f"Operation {node.op!r} of node {node.name!r} is not understood (arguments {kinds!r}: x data, "
                f"c constant). Understood are {', '.join(f'{op}({k})' for op, (k, _) in _OPERATIONS.items())}."
            )
        result = handler(self, node, *data)
        return result if isinstance(result, tuple) else (result,)

    def add(self, step: Step) -> _Symbol:
        self.steps[step.name] = step
        return _Symbol(step.name, step.shape)

    def fuse(self, node: Any, source: Any, **change: Any) -> _Symbol:
        """Bias or activation joins the convolution `source`, on which nothing else may depend."""
        step = self.steps.get(source.name) if isinstance(source, _Symbol) else None
        users = sum(source.name in self.needed[name] for name in self.needed) if step else 0
        if not isinstance(step, Convolution | TransposedConvolution) or step.activation != "linear" or users != 1:
            raise DemoError(f"{node.op} {node.name!r} must follow a convolution that nothing else reads.")
        if "bias" in change and step.bias is not None:
            raise DemoError(f"{node.op} {node.name!r} would be the second bias of {step.name!r}.")
        del self.steps[step.name]
        return self.add(replace(step, name=node.name, **change))


def _triple(node: Any, attribute: str, absent: Triple = (1, 1, 1)) -> Triple:
    """The three spatial numbers of a list for all five axes."""
    numbers = tuple(int(v) for v in node.attr[attribute].list.i) or (1, *absent, 1)
    if len(numbers) != 5 or numbers[0] != 1 or numbers[4] != 1:
        raise DemoError(f"`{attribute}` of {node.name!r} must leave batch and channels alone. Received: {numbers}")
    return numbers[1:4]


def _padding(node: Any) -> str:
    padding = node.attr["padding"].s.decode().lower()
    data_format = node.attr["data_format"].s.decode() or "NDHWC"
    if padding not in ("same", "valid") or data_format != "NDHWC":
        raise DemoError(f"{node.name!r} must be NDHWC and SAME or VALID. Received: {data_format}, {padding.upper()}")
    return padding


def _convolution(walk: _Lowering, node: Any, source: _Symbol, kernel: np.ndarray) -> _Symbol:
    strides, dilation, padding = _triple(node, "strides"), _triple(node, "dilations"), _padding(node)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    size = [
        -(-n // s) if padding == "same" else (n - w) // s + 1
        for n, s, w in zip(source.shape[1:4], strides, windows, strict=True)
    ]
    shape = (source.shape[0], *size, kernel.shape[4])
    return walk.add(Convolution(node.name, shape, (source.name,), kernel, strides, dilation, padding))


def _transposed(walk: _Lowering, node: Any, sizes: np.ndarray, kernel: np.ndarray, source: _Symbol) -> _Symbol:
    if _triple(node, "dilations") != (1, 1, 1):
        raise DemoError(f"The transposed convolution {node.name!r} is dilated, which is not understood.")
    shape = tuple(int(v) for v in sizes)
    return walk.add(
        TransposedConvolution(node.name, shape, (source.name,), kernel, _triple(node, "strides"), _padding(node))
    )


def _max_pool(walk: _Lowering, node: Any, source: _Symbol) -> _Symbol:
    _padding(node)
    window, strides = _triple(node, "ksize"), _triple(node, "strides")
    size = source.shape[1:4]
    if window != strides or any(n % w for n, w in zip(size, window, strict=True)):
        raise DemoError(
            f"Windows of {node.name!r} must tile its input. Received: window {window}, strides {strides}, input {size}"
        )
    pooled = (n // w for n, w in zip(size, window, strict=True))
    return walk.add(MaxPool(node.name, (source.shape[0], *pooled, source.shape[4]), (source.name,), window))


def _concat(walk: _Lowering, node: Any, *values: Any) -> _Symbol:
    *sources, axis = values
    if int(axis) not in (-1, 4):
        raise DemoError(f"{node.name!r} must join channels. Received: axis {int(axis)}")
    shape = (*sources[0].shape[:4], sum(source.shape[4] for source in sources))
    return walk.add(Concat(node.name, shape, tuple(source.name for source in sources)))


def _constant(walk: _Lowering, node: Any) -> np.ndarray:
    from tensorboard.util.tensor_util import make_ndarray

    return np.asarray(make_ndarray(node.attr["value"].tensor))


def _switch(walk: _Lowering, node: Any, data: Any, predicate: Any) -> tuple[Any, Any]:
    """Output 0 is the branch of False, output 1 that of True."""
    return (_DEAD, data) if bool(predicate) else (data, _DEAD)


def _strided_slice(walk: _Lowering, node: Any, data: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
    begin, end, step = (int(bound.item()) for bound in bounds)
    masks = {name: node.attr[name].i for name in ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask")}
    if data.ndim != 1 or any(masks.values()):
        raise DemoError(f"{node.name!r} must slice a vector within stated bounds. Received: {masks}")
    return data[begin] if node.attr["shrink_axis_mask"].i else data[begin:end:step]


#: Per operation: what its arguments must be (x: data of the network, c: a constant), and what is done with them.
_OPERATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "BiasAdd": ("xc", lambda walk, node, source, bias: walk.fuse(node, source, bias=bias)),
    "ConcatV2": ("x+c", _concat),
    "Const": ("", _constant),
    "Conv3D": ("xc", _convolution),
    "Conv3DBackpropInputV2": ("ccx", _transposed),
    "Identity": (".", lambda walk, node, value: value),
    "MaxPool3D": ("x", _max_pool),
    "Mul": ("cc", lambda walk, node, a, b: np.multiply(a, b)),
    "Pack": ("c+", lambda walk, node, *values: np.stack(values)),
    "PlaceholderWithDefault": (".", lambda walk, node, value: value),
    "Relu": ("x", lambda walk, node, source: walk.fuse(node, source, activation="relu")),
    "Shape": ("x", lambda walk, node, source: np.array(source.shape)),
    "Sigmoid": ("x", lambda walk, node, source: walk.fuse(node, source, activation="sigmoid")),
    "StridedSlice": ("cccc", _strided_slice),
    "Switch": (".c", _switch),
}
