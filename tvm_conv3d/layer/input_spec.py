"""What a layer expects of its input, and the messages for what it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, repr=False)
class InputSpec:
    """Least rank of an input and sizes of some axes."""

    min_ndim: int
    axes: dict[int, int] = field(default_factory=dict)

    def check(self, shape: tuple[int, ...], layer_name: str) -> None:
        """Raises ValueError for a shape that does not fit."""
        intro = f"Input 0 with name 'None' of layer '{layer_name}' is incompatible with the layer: "
        if len(shape) < self.min_ndim:
            raise ValueError(
                f"{intro}expected min_ndim={self.min_ndim}, found ndim={len(shape)}. Full shape received: {shape}"
            )
        for axis, size in self.axes.items():
            if shape[axis] != size:
                raise ValueError(
                    f"{intro}expected axis {axis} of input shape to have value {size}, "
                    f"but received input with shape {shape}"
                )

    def __repr__(self) -> str:
        axes = f", axes={self.axes}" if self.axes else ""
        return f"InputSpec(min_ndim={self.min_ndim}{axes})"


def not_a_tensor(value: Any, layer_name: str) -> ValueError:
    """The error for an input that is no tensor: a number, a list, None."""
    if value is None:
        return ValueError(
            f"Inputs to a layer should be tensors. Got '{value}' (of type {type(value)}) "
            f"as input for layer '{layer_name}'."
        )
    leaf = _first_leaf(value)
    if hasattr(leaf, "shape"):
        return ValueError(f"Layer '{layer_name}' takes one tensor. Received: {type(value)}")
    return ValueError(
        "Only input tensors may be passed as positional arguments. The following argument value "
        f"should be passed as a keyword argument: {leaf} (of type {type(leaf)})"
    )


def _first_leaf(value: Any) -> Any:
    """The first element of nested lists, tuples and dicts that is not a tensor, else their first element."""
    while isinstance(value, (list, tuple, dict)) and value:
        items = list(value.values()) if isinstance(value, dict) else list(value)
        value = next((item for item in items if not hasattr(item, "shape")), items[0])
    return value
