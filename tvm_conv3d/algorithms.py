"""The ways of computing a convolution: each joins one TE declaration with its design space for a family of targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.trim import trim, trim_kernel
from tvm_conv3d.spec import Conv3DSpec

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.s_tir import Schedule

    from tvm_conv3d.compute.declaration import Declaration

#: A variant: a frozen dataclass of the algorithm's own.
Variant = Any


@dataclass(frozen=True)
class Algorithm:
    """One algorithm for one family of targets.

    Attributes:
        name: as in records and plans; unique among all.
        kind: of the targets that it is for: "llvm" or "cuda".
        variant_type: dataclass of what changes the declaration.
        declare: (spec, variant) -> TE declaration.
        pack_kernel: (spec, variant, kernel) -> weights in the declaration's layout, those of the seen taps.
        pack_bias: (spec, variant, bias or None) -> bias in the declaration's layout.
        packing: (spec, variant) -> the function `pack`, scheduled, which does the same
            (:mod:`tvm_conv3d.compute.packing`).
        default: (spec, traits of the target) -> (variant, decisions), or None where the algorithm does not apply.
        apply: (schedule, spec, variant, decisions): the design space.
        finish: (scheduled module, spec) -> module: what no schedule primitive expresses.
        error_bound: (spec, variant) -> relative error (2-norm) to expect of data without structure.
        exact: it sums the products of the definition, so that NaN and infinity reach exactly their windows.
        variants: (spec, traits) -> variants that compete while tuning, the default's first; none where the algorithm
            does not apply.
    """

    name: str
    kind: str
    variant_type: type
    declare: Callable[[Conv3DSpec, Variant], Declaration]
    pack_kernel: Callable[[Conv3DSpec, Variant, np.ndarray], np.ndarray]
    pack_bias: Callable[[Conv3DSpec, Variant, np.ndarray | None], np.ndarray]
    packing: Callable[[Conv3DSpec, Variant], IRModule]
    default: Callable[[Conv3DSpec, Any], tuple[Variant, dict[str, int]] | None]
    apply: Callable[[Schedule, Conv3DSpec, Variant, Any], None]
    finish: Callable[[IRModule, Conv3DSpec], IRModule]
    variants: Callable[[Conv3DSpec, Any], list[Variant]]
    error_bound: Callable[[Conv3DSpec, Variant], float]
    exact: bool

    def variant(self, fields: Mapping[str, Any]) -> Variant:
        """The variant with these fields, lists as tuples, as after JSON; raises TypeError when they are not its own."""
        return self.variant_type(**{name: _frozen(value) for name, value in fields.items()})


#: Declarations that are kept for each algorithm.
_DECLARATIONS = 4


@functools.cache
def algorithms(kind: str) -> Mapping[str, Algorithm]:
    """Name -> algorithm for a kind of target ("llvm" or "cuda"), the more special first."""
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"There are no schedules for this kind of target. Received: {kind!r}; supported: {known}")
    return {algorithm.name: algorithm for algorithm in _FAMILIES[kind]()}


def named(name: str) -> Algorithm:
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


def _for_cpus() -> tuple[Algorithm, ...]:
    from tvm_conv3d.compute import depthwise, direct, grouped, planes, winograd, winograd_rows
    from tvm_conv3d.schedules.llvm import depthwise as depthwise_loops
    from tvm_conv3d.schedules.llvm import direct as direct_loops
    from tvm_conv3d.schedules.llvm import grouped as grouped_loops
    from tvm_conv3d.schedules.llvm import packing
    from tvm_conv3d.schedules.llvm import planes as planes_loops
    from tvm_conv3d.schedules.llvm import winograd as winograd_loops
    from tvm_conv3d.schedules.llvm import winograd_rows as rows_loops

    return (
        _join("winograd", "llvm", winograd.WinogradVariant, winograd, winograd_loops, packing, exact=False),
        _join(
            "winograd_rows", "llvm", winograd_rows.WinogradRowsVariant, winograd_rows, rows_loops, packing, exact=False
        ),
        _join("planes", "llvm", planes.PlanesVariant, planes, planes_loops, packing),
        _join("depthwise", "llvm", depthwise.DepthwiseVariant, depthwise, depthwise_loops, packing),
        _join("grouped", "llvm", grouped.GroupedVariant, grouped, grouped_loops, packing),
        _join("direct", "llvm", direct.DirectVariant, direct, direct_loops, packing),
    )


def _for_gpus() -> tuple[Algorithm, ...]:
    from tvm_conv3d.compute import implicit_gemm, tensor_gemm, window, winograd_gemm
    from tvm_conv3d.schedules.cuda import gemm as gemm_loops
    from tvm_conv3d.schedules.cuda import packing
    from tvm_conv3d.schedules.cuda import tensor as tensor_loops
    from tvm_conv3d.schedules.cuda import window as window_loops
    from tvm_conv3d.schedules.cuda import winograd as winograd_loops

    return (
        _join("window", "cuda", window.WindowVariant, window, window_loops, packing),
        _join(
            "winograd_gemm",
            "cuda",
            winograd_gemm.WinogradGemmVariant,
            winograd_gemm,
            winograd_loops,
            packing,
            exact=False,
        ),
        _join("tensor_gemm", "cuda", tensor_gemm.TensorVariant, tensor_gemm, tensor_loops, packing),
        _join("gemm", "cuda", implicit_gemm.GemmVariant, implicit_gemm, gemm_loops, packing),
    )


#: By kind of target; names are unique among all.
_FAMILIES = {"llvm": _for_cpus, "cuda": _for_gpus}


def _join(
    name: str,
    kind: str,
    variant_type: type,
    compute: ModuleType,
    loops: ModuleType,
    packing: ModuleType,
    exact: bool = True,
) -> Algorithm:
    def pack_kernel(spec: Conv3DSpec, variant: Variant, kernel: np.ndarray) -> np.ndarray:
        return compute.pack_kernel(trim(spec), variant, trim_kernel(spec, kernel))

    def pack(spec: Conv3DSpec, variant: Variant) -> IRModule:
        return packing.scheduled(spec, variant, compute.declare_packing)

    return Algorithm(
        name,
        kind,
        variant_type,
        # asked for twice: what the plan takes of memory, then its loops
        functools.lru_cache(maxsize=_DECLARATIONS)(compute.declare),
        pack_kernel,
        compute.pack_bias,
        pack,
        loops.default,
        loops.apply,
        loops.finish,
        loops.variants,
        compute.error_bound,
        exact,
    )


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that variants hold."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
