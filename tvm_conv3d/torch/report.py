"""What was done to a module, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.fx import Graph, Node

from tvm_conv3d.torch.graph.tensors import Held
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION
from tvm_conv3d.torch.operators.normalization import NORMALIZATION, NORMALIZATION_

#: Reasons and shapes that are told; a service may meet any number.
_MAX_TOLD = 64


class Replayed(NamedTuple):
    """What was made of the calls of one shape.

    Attributes:
        inputs: shapes of its tensors.
        fused: one line for each convolution and norm of this package's; none where nothing is replayed.
        reason: why the module is called layer by layer.
    """

    inputs: str
    fused: tuple[str, ...]
    reason: str | None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"  {self.inputs}: layer by layer, as {self.reason}"
        return "\n".join(
            (f"  {self.inputs}: {len(self.fused)} fused operators", *(f"    {line}" for line in self.fused))
        )


@dataclass
class Report:
    """What :func:`tvm_conv3d.torch.accelerate` did, and what its module's calls do; `print(report)` tells it in lines.

    Attributes:
        replaced: names of modules, as `named_modules` gives them.
        left: names of convolutions that were left alone, and why.
        replayed: what was made of each shape of inputs so far.
        by_layers: how many calls went layer by layer, by reason.
    """

    replaced: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    replayed: list[Replayed] = field(default_factory=list)
    by_layers: Counter[str] = field(default_factory=Counter)

    def recorded(self, inputs: str, fused: Sequence[str], reason: str | None) -> None:
        """Notes what was made of a shape of inputs."""
        self.replayed = [*self.replayed, Replayed(inputs, tuple(fused), reason)][-_MAX_TOLD:]

    def note(self, reason: str) -> None:
        """Notes that a call went layer by layer."""
        if reason in self.by_layers or len(self.by_layers) < _MAX_TOLD:
            self.by_layers[reason] += 1

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} convolutions replaced, {len(self.left)} left alone"]
        lines += [f"  replaced: {name or '(the module itself)'}" for name in self.replaced]
        lines += [f"  left: {name or '(the module itself)'}: {why}" for name, why in self.left.items()]
        lines += ["calls, by shapes of inputs:", *map(str, self.replayed)] if self.replayed else []
        lines += [f"{count} calls layer by layer: {reason}" for reason, count in self.by_layers.most_common()]
        return "\n".join(lines)


def described(graph: Graph) -> list[str]:
    """One line for each convolution and norm that this package computes, in the order of the calls."""
    return [line for line in map(_described, graph.nodes) if line is not None]


def _described(node: Node) -> str | None:
    if node.target is FUSED_CONVOLUTION:
        _, weight, _, batch_norm, _, _, _, steps, *geometry = node.args
        what = "transposed convolution" if geometry[3] else "convolution"
        parts = [f"{_layer(weight)}: {what}", *(["batch norm"] if batch_norm else []), *_told(steps)]
        return " + ".join(parts)
    if node.target in (NORMALIZATION, NORMALIZATION_):
        _, _, mean, _, weight, *_, steps = node.args
        where = " (in place)" if node.target is NORMALIZATION_ else ""
        parts = [f"{_layer(weight or mean)}: {'norm' if mean is None else 'batch norm'}", *_told(steps)]
        return " + ".join(parts) + where
    return None


def _told(steps: Any) -> list[str]:
    return [str(step) for step in steps]


def _layer(tensor: Any) -> str:
    """The layer that a parameter belongs to."""
    if isinstance(tensor, Node) and tensor.op == "get_attr":
        return str(tensor.target).rpartition(".")[0] or "(the module itself)"
    if isinstance(tensor, Node) and isinstance(tensor.target, Held):
        return tensor.target.name.rpartition(".")[0] or "(no layer)"
    return "(no layer)"
