"""What a plan's amounts cost on a GPU: they are nanoseconds of models that nobody has fitted, and simply add up."""

from __future__ import annotations

from collections.abc import Mapping

from tvm_conv3d.target.gpu import GpuTraits


def price(traits: GpuTraits, algorithm: str, amounts: Mapping[str, float]) -> float:
    """Nanoseconds of a whole convolution."""
    return sum(amounts.values())
