"""What a tile on tensor cores takes of a multiprocessor."""

from __future__ import annotations

from tvm_conv3d.compute.cuda.implicit_gemm import extents_of
from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.spec import CHANNELS_LAST

#: Elements by which rows in shared memory are lengthened, so that their beginnings lie in different banks; and words by
#: which those of sums are that lie across fragments, as in channels_first.
SKEW, SKEW_OF_TURNED = 8, 4


def shared_bytes(spec: CanonicalSpec, variant: TensorVariant) -> int:
    """Bytes of shared memory of a block: steps of both factors, or in their place the sums."""
    cells, filters, step = variant.cells, variant.filters, variant.step
    factors = 2 * (cells * (step + SKEW) + step * (filters + SKEW))
    last = spec.data_format == CHANNELS_LAST
    sums = cells * (filters + SKEW) if last else filters * (cells + SKEW_OF_TURNED)
    return max(variant.stages * factors, 4 * sums * variant.warps_terms)


def terms_of_sum(spec: CanonicalSpec, variant: TensorVariant) -> int:
    """Terms that one warp adds up for each of its sums."""
    return extents_of(spec, variant).turns // variant.parts * (variant.step // variant.warps_terms)


def sums_of_thread(spec: CanonicalSpec, variant: TensorVariant) -> int:
    """Registers of a thread that hold sums: twice as many where those of a part are added to totals."""
    threads = 32 * variant.warps_cells * variant.warps_filters
    terms = terms_of_sum(spec, variant)
    return variant.cells * variant.filters // threads * (2 if terms > terms_of_part(terms, on_gpu=True) else 1)
