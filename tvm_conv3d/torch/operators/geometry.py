"""The arguments of a convolution in torch's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """The operator's arguments behind its tensors, as `aten::convolution` names them.

    Attributes:
        stride, dilation, groups: torch's.
        padding: three numbers, or six: before and after depth, height and width; six for what is not transposed only.
        transposed, output_padding: torch's.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    @property
    def key(self) -> tuple[Any, ...]:
        """The same as what tables can be asked for."""
        return tuple(tuple(value) if isinstance(value, (list, tuple)) else value for value in self)

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Before and after each axis."""
        padding = self.padding if len(self.padding) == 6 else [pad for pad in self.padding for _ in range(2)]
        return tuple(zip(padding[::2], padding[1::2], strict=True))

    @property
    def is_torchs(self) -> bool:
        """Whether torch takes these pads: none is negative, and a result is not longer than its strides can tell."""
        sides = zip(self.output_padding, self.stride, self.dilation, strict=False)
        too_long = self.transposed and any(more >= max(stride, dilation) for more, stride, dilation in sides)
        return all(pad >= 0 for pad in self.padding) and not too_long

    def input_shape(self, result: Sequence[int], weight: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
        """The shape of an input of `size`, by those of the result and the weight."""
        channels = weight[0] if self.transposed else weight[1] * self.groups
        return (result[0], channels, *size)

    def weight_shape(self, result: Sequence[int], x: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """The shape of a weight of `kernel` taps, by those of the result and the input."""
        first, second = (x, result) if self.transposed else (result, x)
        return (first[1], second[1] // self.groups, *kernel)

    def split(self) -> tuple[tuple[int, ...], Geometry]:
        """What is to be padded beforehand, as torch's `pad` takes it, and what torch's own convolution takes then."""
        around = tuple(min(pair) for pair in self.pads)
        more = [pad - least for pair, least in zip(self.pads, around, strict=True) for pad in pair]
        # torch begins with the last axis
        beforehand = tuple(pad for axis in (2, 1, 0) for pad in more[2 * axis : 2 * axis + 2])
        return beforehand if any(beforehand) else (), self._replace(padding=around)


def split_geometry(arguments: Sequence[Any]) -> tuple[Geometry, int | None]:
    """What a fused convolution takes behind its epilogue: a geometry, and `packed_limit`, which may be left out."""
    count = len(Geometry._fields)
    return Geometry(*arguments[:count]), next(iter(arguments[count:]), None)


def in_torch(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution by torch's own code, differentiable, in the order of memory that torch chooses."""
    beforehand, rest = geometry.split()
    if beforehand:
        x = torch.nn.functional.pad(x, beforehand)
    return torch.ops.aten.convolution.default(x, weight, bias, *rest)


def gradients_in_torch(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight by torch's own code; None for one that is not wanted.

    Args:
        gradient: that of the convolution's result.
        x, weight: of the convolution; of one whose gradient alone is wanted, shape and order of memory count.
        geometry: of the convolution.
        wanted: which of the two are.
    """
    beforehand, rest = geometry.split()
    padded = torch.nn.functional.pad(x, beforehand) if beforehand else x
    of_x, of_weight, _ = torch.ops.aten.convolution_backward.default(
        gradient, padded, weight, None, *rest, [*wanted, False]
    )
    if beforehand and of_x is not None:
        of_x = torch.nn.functional.pad(of_x, [-pad for pad in beforehand])
    return of_x, of_weight
