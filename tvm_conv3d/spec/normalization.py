"""What a normalization computes: each element less a mean, over a deviation, and what becomes of it.

Instance norm, group norm and batch norm with given statistics differ in where the moments come from, not in this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tvm_conv3d.spec import post_ops as chains

#: A step of these chains only: leaky_relu with a slope that is an argument of the call.
PRELU = "prelu"


@dataclass(frozen=True)
class NormalizationSpec:
    """All that compiled code of a normalization depends on; sizes, groups and numbers are arguments of each call.

    Attributes:
        dtype: of the data; half types are computed in float32 and rounded once.
        post_ops: as :func:`canonical` gives them.
        in_place: the result takes the place of the data.
    """

    dtype: str
    post_ops: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def accumulator(self) -> str:
        """Element type in which elements are computed; moments are float64's always."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def residual(self) -> bool:
        """Whether a residual operand is added."""
        return chains.ADD in self.post_ops

    def key(self) -> str:
        """The identity in one line."""
        place = ("in_place",) if self.in_place else ()
        return "_".join(("normalization", self.dtype, chains.printed(self.post_ops), *place))


def canonical(post_ops: Iterable[str]) -> tuple[str, ...]:
    """As :func:`tvm_conv3d.spec.post_ops.canonical`, of chains that may hold :data:`PRELU`.

    Raises:
        ValueError: it is a string or no sequence, a step is unknown, or there are two residual operands.
    """
    if isinstance(post_ops, str) or not isinstance(post_ops, Iterable):
        return chains.canonical(post_ops)
    given = tuple(post_ops)
    # the chain as a whole is checked once, and each step put in its shortest form
    chains.canonical(step for step in given if step != PRELU)
    steps = ((step,) if step == PRELU else chains.canonical((step,)) for step in given)
    return tuple(step for some in steps for step in some)
