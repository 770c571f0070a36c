"""The ways of computing a convolution: each joins one TE declaration with its design space for a family of targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from tvm_conv3d.compute.shared.canonical import CanonicalSpec, canonicalize
from tvm_conv3d.spec import Conv3DSpec

if TYPE_CHECKING:
    from tvm import IRModule, te
    from tvm.s_tir import Schedule

    from tvm_conv3d.compute.shared.declaration import Declaration
    from tvm_conv3d.compute.shared.packing import DeclarePacking, Weights
    from tvm_conv3d.schedules.decisions import Decisions


class Variant(Protocol):
    """What changes a TE declaration: a frozen dataclass of the algorithm's own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...


V = TypeVar("V", bound=Variant)
_V_contra = TypeVar("_V_contra", bound=Variant, contravariant=True)


class Declares(Protocol[_V_contra]):
    """What a module of `compute` declares of one algorithm."""

    def declare(self, spec: CanonicalSpec, variant: _V_contra, /) -> Declaration:
        """The convolution in TE."""

    def declare_packing(
        self, spec: CanonicalSpec, variant: _V_contra, weights: Weights, /
    ) -> tuple[te.Tensor, te.Tensor]:
        """Packed kernel and packed bias in TE."""

    def error_bound(self, spec: CanonicalSpec, variant: _V_contra, /) -> float:
        """The relative error (2-norm) to expect of data and weights without structure."""


class Chooses(Protocol[V]):
    """What a module of a family's `costs` knows of one algorithm: its variants, and which one is taken untuned."""

    def default(self, spec: CanonicalSpec, traits: Any, /) -> tuple[V, dict[str, int]] | None:
        """Variant and decisions where nothing was tuned; None where the algorithm does not apply."""

    def variants(self, spec: CanonicalSpec, traits: Any, /) -> list[V]:
        """Those that compete while tuning, the default's first; none where the algorithm does not apply."""


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
    """

    kind: str
    packing: Callable[[CanonicalSpec, Any, DeclarePacking], IRModule]
    finished: Callable[[IRModule], IRModule]


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm(Generic[V]):
    """One algorithm for one family of targets.

    Attributes:
        name: as in records and plans; unique among all.
        family: of the targets that it is for.
        variant_type: of its variants.
        compute: its declaration.
        costs: its choices.
        loops: its design space.
        exact: it sums the products of the definition, so that NaN and infinity reach exactly their windows.
        phases: it serves results with phases (:mod:`tvm_conv3d.compute.shared.phases`), of transposed convolutions.
    """

    name: str
    family: Family
    variant_type: type[V]
    compute: Declares[V]
    costs: Chooses[V]
    loops: Schedules[V]
    exact: bool = True
    phases: bool = False

    def declare(self, spec: Conv3DSpec, variant: V) -> Declaration:
        """The convolution in TE; raises ValueError where the variant does not suit the spec."""
        return self._declared(canonicalize(spec), variant)

    def packing(self, spec: Conv3DSpec, variant: V) -> IRModule:
        """The function `pack` of kernel and bias (:mod:`tvm_conv3d.compute.shared.packing`), with its loops."""
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

    def apply(self, schedule: Schedule, spec: Conv3DSpec, variant: V, decisions: Decisions) -> None:
        """Schedules the declaration: the design space."""
        self.loops.apply(schedule, canonicalize(spec), variant, decisions)

    def variant(self, fields: Mapping[str, Any]) -> V:
        """The variant with these fields, lists as tuples, as after JSON; raises TypeError when they are not its own."""
        return self.variant_type(**{name: _frozen(value) for name, value in fields.items()})

    def _serves(self, spec: CanonicalSpec) -> bool:
        return self.phases or not spec.phased

    @functools.cached_property
    def _declared(self) -> Callable[[CanonicalSpec, V], Declaration]:
        # asked for twice: what the plan takes of memory, then its loops
        return functools.lru_cache(maxsize=_DECLARATIONS)(self.compute.declare)


#: Declarations that are kept for each algorithm.
_DECLARATIONS = 4


@functools.cache
def algorithms(kind: str) -> Mapping[str, Algorithm[Any]]:
    """Name -> algorithm for a kind of target ("llvm" or "cuda"), the more special first."""
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"There are no schedules for this kind of target. Received: {kind!r}; supported: {known}")
    return {algorithm.name: algorithm for algorithm in _FAMILIES[kind]()}


def named(name: str) -> Algorithm[Any]:
    """The algorithm of this name, whatever its kind of target.

    Raises:
        ValueError: there is none.
    """
    # one family after the other, as looking into one imports it
    for kind in _FAMILIES:
        if name in algorithms(kind):
            return algorithms(kind)[name]
    known = ", ".join(known for kind in _FAMILIES for known in algorithms(kind))
    raise ValueError(f"There is no algorithm of this name. Received: {name!r}; known: {known}")


def _for_cpus() -> tuple[Algorithm[Any], ...]:
    from tvm_conv3d.compute.llvm import depthwise, direct, grouped, planes, winograd, winograd_rows
    from tvm_conv3d.schedules.llvm import depthwise as depthwise_loops
    from tvm_conv3d.schedules.llvm import direct as direct_loops
    from tvm_conv3d.schedules.llvm import grouped as grouped_loops
    from tvm_conv3d.schedules.llvm import packing
    from tvm_conv3d.schedules.llvm import planes as planes_loops
    from tvm_conv3d.schedules.llvm import winograd as winograd_loops
    from tvm_conv3d.schedules.llvm import winograd_rows as winograd_rows_loops
    from tvm_conv3d.schedules.llvm.costs import depthwise as depthwise_costs
    from tvm_conv3d.schedules.llvm.costs import direct as direct_costs
    from tvm_conv3d.schedules.llvm.costs import grouped as grouped_costs
    from tvm_conv3d.schedules.llvm.costs import planes as planes_costs
    from tvm_conv3d.schedules.llvm.costs import winograd as winograd_costs
    from tvm_conv3d.schedules.llvm.costs import winograd_rows as winograd_rows_costs
    from tvm_conv3d.schedules.llvm.passes import pipeline

    family = Family(kind="llvm", packing=packing.scheduled, finished=pipeline.finished)
    # each of its variant's type, to which mypy then holds its parts
    return (
        Algorithm[winograd.WinogradVariant](
            name="winograd",
            family=family,
            variant_type=winograd.WinogradVariant,
            compute=winograd,
            costs=winograd_costs,
            loops=winograd_loops,
            exact=False,
        ),
        Algorithm[winograd_rows.WinogradRowsVariant](
            name="winograd_rows",
            family=family,
            variant_type=winograd_rows.WinogradRowsVariant,
            compute=winograd_rows,
            costs=winograd_rows_costs,
            loops=winograd_rows_loops,
            exact=False,
        ),
        Algorithm[planes.PlanesVariant](
            name="planes",
            family=family,
            variant_type=planes.PlanesVariant,
            compute=planes,
            costs=planes_costs,
            loops=planes_loops,
        ),
        Algorithm[depthwise.DepthwiseVariant](
            name="depthwise",
            family=family,
            variant_type=depthwise.DepthwiseVariant,
            compute=depthwise,
            costs=depthwise_costs,
            loops=depthwise_loops,
        ),
        Algorithm[grouped.GroupedVariant](
            name="grouped",
            family=family,
            variant_type=grouped.GroupedVariant,
            compute=grouped,
            costs=grouped_costs,
            loops=grouped_loops,
        ),
        Algorithm[direct.DirectVariant](
            name="direct",
            family=family,
            variant_type=direct.DirectVariant,
            compute=direct,
            costs=direct_costs,
            loops=direct_loops,
            phases=True,
        ),
    )


def _for_gpus() -> tuple[Algorithm[Any], ...]:
    from tvm_conv3d.compute.cuda import implicit_gemm, tensor_gemm, window, winograd_gemm
    from tvm_conv3d.schedules.cuda import finish, packing
    from tvm_conv3d.schedules.cuda import gemm as gemm_loops
    from tvm_conv3d.schedules.cuda import tensor as tensor_loops
    from tvm_conv3d.schedules.cuda import window as window_loops
    from tvm_conv3d.schedules.cuda import winograd as winograd_loops
    from tvm_conv3d.schedules.cuda.costs import gemm as gemm_costs
    from tvm_conv3d.schedules.cuda.costs import tensor as tensor_costs
    from tvm_conv3d.schedules.cuda.costs import window as window_costs
    from tvm_conv3d.schedules.cuda.costs import winograd as winograd_costs

    family = Family(kind="cuda", packing=packing.scheduled, finished=finish.finished)
    return (
        Algorithm[window.WindowVariant](
            name="window",
            family=family,
            variant_type=window.WindowVariant,
            compute=window,
            costs=window_costs,
            loops=window_loops,
        ),
        Algorithm[winograd_gemm.WinogradGemmVariant](
            name="winograd_gemm",
            family=family,
            variant_type=winograd_gemm.WinogradGemmVariant,
            compute=winograd_gemm,
            costs=winograd_costs,
            loops=winograd_loops,
            exact=False,
        ),
        Algorithm[tensor_gemm.TensorVariant](
            name="tensor_gemm",
            family=family,
            variant_type=tensor_gemm.TensorVariant,
            compute=tensor_gemm,
            costs=tensor_costs,
            loops=tensor_loops,
            phases=True,
        ),
        Algorithm[implicit_gemm.GemmVariant](
            name="gemm",
            family=family,
            variant_type=implicit_gemm.GemmVariant,
            compute=implicit_gemm,
            costs=gemm_costs,
            loops=gemm_loops,
            phases=True,
        ),
    )


#: By kind of target; names are unique among all.
_FAMILIES = {"llvm": _for_cpus, "cuda": _for_gpus}


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that variants hold."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
