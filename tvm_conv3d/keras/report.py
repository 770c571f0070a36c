"""What was done to a model, in words."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """What :func:`tvm_conv3d.keras.accelerate` did; `print(report)` tells it in lines.

    Attributes:
        replaced: paths of layers that this package computes.
        fused: one line for each convolution with what its kernel computes beside it in inference.
        pooled: one line for each convolution that is one step with the max pool behind it.
        beside: paths of max pools and batch norms that are computed by fewer passes over memory.
        left: paths of convolutions that were left alone, and why.
    """

    replaced: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)
    pooled: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{len(self.replaced)} convolutions replaced, {len(self.left)} left alone, {len(self.fused)} fused with "
            "what follows them"
        ]
        lines += [f"  replaced: {path}" for path in self.replaced]
        lines += [f"  fused in inference: {line}" for line in self.fused]
        lines += [f"  one step: {line}" for line in self.pooled]
        lines += [f"  beside: {path}" for path in self.beside]
        lines += [f"  left: {path}: {why}" for path, why in self.left.items()]
        return "\n".join(lines)
