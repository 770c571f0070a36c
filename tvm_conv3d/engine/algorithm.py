"""A way of computing a convolution: one TE declaration joined with its loops and costs for a family of targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from tvm_conv3d.compute.shared.canonical import CanonicalSpec, canonicalize
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import WEIGHT_GRADIENT, Conv3DSpec

if TYPE_CHECKING:
    from tvm import IRModule, te
    from tvm.s_tir import Schedule

    from tvm_conv3d.compute.shared.declaration import Declaration
    from tvm_conv3d.compute.shared.packing import DeclarePacking, Weights


class Variant(Protocol):
    """What changes a TE declaration: a frozen dataclass of the algorithm's own, which says whether that is exact."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    exact: ClassVar[bool]

    def __hash__(self) -> int: ...


V = TypeVar("V", bound=Variant)
_V_contra = TypeVar("_V_contra", bound=Variant, contravariant=True)

#: Declarations that are kept for each algorithm.
_DECLARATIONS = 4


class Declares(Protocol[_V_contra]):
    """What a module of `compute` declares of one algorithm."""

    def declare(self, spec: CanonicalSpec, variant: _V_contra, /) -> Declaration:
        """The convolution in TE, or the gradient."""

    def error_bound(self, spec: CanonicalSpec, variant: _V_contra, /) -> float:
        """The relative error (2-norm) to expect of data and weights without structure."""


@runtime_checkable
class Packs(Declares[_V_contra], Protocol[_V_contra]):
    """The same of one that reads weights."""

    def declare_packing(
        self, spec: CanonicalSpec, variant: _V_contra, weights: Weights, /
    ) -> tuple[te.Tensor, te.Tensor]:
        """Packed kernel and packed bias in TE."""


class Chooses(Protocol[V]):
    """What a module of a family's `costs` knows of one algorithm: its variants, and which one is taken untuned."""

    def default(self, spec: CanonicalSpec, traits: Any, /) -> tuple[V, dict[str, int]] | None:
        """Variant and decisions where nothing was tuned; None where the algorithm does not apply."""

    def variants(self, spec: CanonicalSpec, traits: Any, /) -> list[V]:
        """Those that compete while tuning, the default's first; none where the algorithm does not apply."""

    def amounts(
        self, spec: CanonicalSpec, traits: Any, variant: V, decisions: Mapping[str, int], /
    ) -> dict[str, float]:
        """How much of each named thing a plan does, by which it is priced."""


@runtime_checkable
class Shrinks(Chooses[V], Protocol[V]):
    """The same of one whose packed weights may be several times as large as the weights."""

    def smaller(self, spec: CanonicalSpec, traits: Any, /) -> Sequence[tuple[V, dict[str, int]]]:
        """Variants and decisions, each with fewer packed weights than the one before, and the cheapest of its size."""


class Schedules(Protocol[_V_contra]):
    """What a module of `schedules` makes of one algorithm's declaration, for one family of targets."""

    def apply(self, schedule: Schedule, spec: CanonicalSpec, variant: _V_contra, decisions: Decisions, /) -> None:
        """The design space."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """What all algorithms for one kind of target share.

    Attributes:
        kind: of the targets: "llvm" or "cuda".
        packing: (spec, variant, declaration of the packing) -> the function `pack` with its loops.
        finished: (scheduled module) -> the same with what no schedule primitive expresses.
        price: (traits, algorithm's name, amounts) -> the estimated time, in a unit of the family's own: cycles of the
            busiest core, nanoseconds of a GPU.
    """

    kind: str
    packing: Callable[[CanonicalSpec, Any, DeclarePacking], IRModule]
    finished: Callable[[IRModule], IRModule]
    price: Callable[[Any, str, Mapping[str, float]], float]


@dataclass(frozen=True, eq=False)
class Algorithm(Generic[V]):
    """One algorithm for one family of targets.

    Attributes:
        name: as in records and plans; unique among all.
        family: of the targets that it is for.
        variant_type: of its variants.
        compute: its declaration.
        costs: its choices.
        loops: its design space.
        phases: it serves results with phases (:mod:`tvm_conv3d.compute.shared.phases`), of transposed convolutions.
        of_weights: it computes gradients of weights, and nothing else; others compute none.
    """

    name: str
    family: Family
    variant_type: type[V]
    compute: Declares[V] | Packs[V]
    costs: Chooses[V] | Shrinks[V]
    loops: Schedules[V]
    _: KW_ONLY
    phases: bool = False
    of_weights: bool = False

    @property
    def exact(self) -> bool:
        """Whether it sums the products of the definition, so that NaN and infinity reach exactly their windows."""
        return self.variant_type.exact

    def declare(self, spec: Conv3DSpec, variant: V) -> Declaration:
        """The convolution in TE; raises ValueError where the variant does not suit the spec."""
        return self._declared(canonicalize(spec), variant)

    def packing(self, spec: Conv3DSpec, variant: V) -> IRModule:
        """The function `pack` of kernel and bias (:mod:`tvm_conv3d.compute.shared.packing`), with its loops.

        Raises:
            ValueError: the algorithm reads no weights.
        """
        if not isinstance(self.compute, Packs):
            raise ValueError(f"The algorithm {self.name} reads no weights to be packed. Received: {spec.key()}")
        return self.family.packing(canonicalize(spec), variant, self.compute.declare_packing)

    def error_bound(self, spec: Conv3DSpec, variant: V) -> float:
        """The relative error (2-norm) to expect of data and weights without structure."""
        return self.compute.error_bound(canonicalize(spec), variant)

    def default(self, spec: Conv3DSpec, traits: Any) -> tuple[V, dict[str, int]] | None:
        """Variant and decisions where nothing was tuned; None where the algorithm does not apply.

        Args:
            spec: the problem.
            traits: of the target: :func:`tvm_conv3d.target.resolve.traits_of`.
        """
        canonical = canonicalize(spec)
        return self.costs.default(canonical, traits) if self._serves(canonical) else None

    def variants(self, spec: Conv3DSpec, traits: Any) -> list[V]:
        """Those that compete while tuning, the default's first; none where the algorithm does not apply."""
        canonical = canonicalize(spec)
        return self.costs.variants(canonical, traits) if self._serves(canonical) else []

    def smaller(self, spec: Conv3DSpec, traits: Any) -> Sequence[tuple[V, dict[str, int]]]:
        """Variants and decisions beside the default's that pack fewer weights, and take longer; most have none."""
        canonical = canonicalize(spec)
        if not isinstance(self.costs, Shrinks) or not self._serves(canonical):
            return ()
        return self.costs.smaller(canonical, traits)

    def packed_bytes(self, spec: Conv3DSpec, variant: V) -> int:
        """What the packed weights take; raises ValueError where the variant does not suit the spec."""
        arguments = self.declare(spec, variant).arguments
        return sum(argument.size_bytes for argument in arguments if argument.role == "weights")

    def cost(self, spec: Conv3DSpec, traits: Any, variant: V, decisions: Mapping[str, int]) -> float:
        """The estimated time of a plan, comparable among the algorithms of one family."""
        amounts = self.costs.amounts(canonicalize(spec), traits, variant, decisions)
        return self.family.price(traits, self.name, amounts)

    def apply(self, schedule: Schedule, spec: Conv3DSpec, variant: V, decisions: Decisions) -> None:
        """Schedules the declaration: the design space."""
        self.loops.apply(schedule, canonicalize(spec), variant, decisions)

    def variant(self, fields: Mapping[str, Any]) -> V:
        """The variant with these fields, lists as tuples, as after JSON; raises TypeError when they are not its own."""
        return variant_of(self.variant_type, fields)

    def _serves(self, spec: CanonicalSpec) -> bool:
        if self.of_weights or spec.origin.direction == WEIGHT_GRADIENT:
            return self.of_weights and spec.origin.direction == WEIGHT_GRADIENT
        return self.phases or not spec.phased

    @functools.cached_property
    def _declared(self) -> Callable[[CanonicalSpec, V], Declaration]:
        # asked for twice: what the plan takes of memory, then its loops
        return functools.lru_cache(maxsize=_DECLARATIONS)(self.compute.declare)


def variant_of(variant_type: type[V], fields: Mapping[str, Any]) -> V:
    """The variant of a type with these fields, lists as tuples, as after JSON.

    Raises:
        TypeError: they are not the type's own.
    """
    return variant_type(**{name: _frozen(value) for name, value in fields.items()})


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that variants hold."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
