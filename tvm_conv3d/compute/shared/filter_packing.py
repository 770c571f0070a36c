"""Where the filters of a convolution lie in vectors: those of one group, or of several interleaved groups.

Few filters a group fill no vector. Those of `interleaved` neighbouring groups together do: lane l belongs to group
l mod `interleaved`, so that the input of a vector is one element of each of these groups, again and again, which a CPU
loads in one instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_conv3d.compute.shared.canonical import CanonicalSpec

Expr = Any  # a TVM expression; its classes are not public names


@dataclass(frozen=True)
class FilterPacking:
    """A spec's filters in blocks of `vectors` vectors.

    Attributes:
        groups: of the convolution.
        filters: of a group.
        interleaved: groups that share vectors, lane by lane; a power of two that divides `groups` and `lanes`.
        vectors, lanes: of a block, and of a vector.

    Raises:
        ValueError: so many groups can't be interleaved.
    """

    groups: int
    filters: int
    interleaved: int
    vectors: int
    lanes: int

    def __post_init__(self) -> None:
        if self.groups % self.interleaved or self.lanes % self.interleaved:
            raise ValueError(f"Interleaved groups must divide all groups, and the lanes of a vector. Received: {self}")

    @classmethod
    def of(cls, spec: CanonicalSpec, variant: Any) -> FilterPacking:
        """Those of a variant with `interleaved`, `vectors` and `lanes`; phases count as groups."""
        return cls(spec.sets, spec.set_filters, variant.interleaved, variant.vectors, variant.lanes)

    @property
    def sharing(self) -> int:
        """Sets of groups that share vectors."""
        return self.groups // self.interleaved

    @property
    def shared_filters(self) -> int:
        """Filters of one of these."""
        return self.filters * self.interleaved

    @property
    def blocks(self) -> int:
        """Blocks of one of these."""
        return -(-self.filters // (self._each * self.vectors))

    @property
    def _each(self) -> int:
        """Filters of one group in a vector."""
        return self.lanes // self.interleaved

    def place(self, filter_: Expr) -> tuple[Expr, Expr]:
        """Vector and lane of one of the shared filters, which are numbered as they lie in the output."""
        if self.interleaved == 1:
            # a vector may overhang the filters, which a remainder would hide
            return filter_ // self._each, filter_ % self._each
        group, number = filter_ // self.filters, filter_ % self.filters
        return number // self._each, number % self._each * self.interleaved + group

    def filter_at(self, shared: Expr, block: Expr, vector: Expr, lane: Expr) -> tuple[Expr, list[Expr]]:
        """The filter of a lane, and what must hold for it to exist: the inverse of :meth:`place`.

        Args:
            shared: number of the set of groups.
            block: of the set's filters.
            vector: of the block.
            lane: of the vector.
        """
        number = (block * self.vectors + vector) * self._each + lane // self.interleaved
        group = shared * self.interleaved + lane % self.interleaved
        whole = self.blocks * self.vectors * self._each == self.filters
        return group * self.filters + number, [] if whole else [number < self.filters]
