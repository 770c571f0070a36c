"""The fused operator on tensors in the CPU's memory: one kernel, or torch's own functions where that can't be."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tvm_conv3d.runtime import digest, interchange
from tvm_conv3d.runtime.bound_call import BoundCall
from tvm_conv3d.runtime.cpu_backend import CpuCall
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.runtime.kept_weights import STORE, Place
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_LAST, DATA_GRADIENT, Conv3DSpec
from tvm_conv3d.spec.normalization import PRELU
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators.composition import Epilogue, composed, in_channels_last
from tvm_conv3d.torch.operators.cpu_convolution import (
    EXECUTOR,
    MAX_CALLS,
    WEIGHT_AXES,
    Prepared,
    prepare,
    weights_of,
)
from tvm_conv3d.torch.operators.geometry import Geometry, split_geometry
from tvm_conv3d.torch.operators.post_ops import with_slope

#: Types of batch norms beside those of inputs: parameters of float32 are usual beside half types.
_NORM_DTYPES = {dtype: {dtype, torch.float32} if dtype.itemsize == 2 else {dtype} for dtype in DTYPES}


class _Fused(NamedTuple):
    """What calls have in common whose shapes, types and arguments are the same.

    Attributes:
        convolution: of calls of the convolution with these steps.
        spec: of the same, with the channels last.
        affine: whether there are the batch norm's weight and its bias; None for no batch norm.
    """

    convolution: Prepared
    spec: Conv3DSpec
    affine: tuple[bool, bool] | None

    @property
    def transposed(self) -> bool:
        """Whether the convolution is."""
        return self.spec.direction == DATA_GRADIENT


_calls: Recent[Any, _Fused | str] = process.keep("torch: checked calls of fused convolutions", Recent(MAX_CALLS))


def fused_convolution_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    batch_norm: Sequence[Tensor | None],
    epsilon: float,
    residual: Tensor | None,
    slope: Tensor | None,
    post_ops: Sequence[str],
    *arguments: Any,
) -> Tensor:
    """`post_ops(batch_norm(convolution(x) + bias))` in a fresh tensor of `torch.channels_last_3d` memory.

    The batch norm is folded into the weights (:mod:`tvm_conv3d.runtime.folding`); residual operand and steps are
    part of the convolution's kernel.

    Args:
        x: (batch, channels, depth, height, width), in the CPU's memory, of any strides.
        weight, bias: as `torch.nn.functional` takes them.
        batch_norm, epsilon, residual, slope, post_ops: of :class:`Epilogue`.
        arguments: of :class:`Geometry`, and maybe bytes that packed weights may take.

    Raises:
        ValueError, RuntimeError: as :func:`tvm_conv3d.torch.operators.composition.composed`.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    tensors = (x, weight, bias, residual, *batch_norm)
    kinds = tuple([None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors])
    chain, (geometry, packed_limit) = with_slope(post_ops, slope), split_geometry(arguments)
    key = (kinds, chain, epsilon, geometry.key)
    fused = _calls.get(key)
    if fused is None:
        fused = _prepare(kinds, chain, geometry)
        _calls.put(key, fused)
    try:
        result = (
            fused
            if isinstance(fused, str)
            else _by_kernel(fused, x, weight, bias, batch_norm, epsilon, residual, packed_limit)
        )
    except ValueError as error:
        # no algorithm takes it within the limit of workspace, say
        result = str(error)
        _calls.put(key, result)
    if isinstance(result, str):
        counting.count_torch(result)
        epilogue = Epilogue(batch_norm, epsilon, residual, slope, post_ops)
        return in_channels_last(composed(x, weight, bias, epilogue, geometry))
    counting.count_ours()
    return result


def spec_of(
    kinds: tuple[Any, ...], post_ops: Sequence[str], slope: Tensor | None, geometry: Geometry
) -> Conv3DSpec | None:
    """The problem that calls with tensors of these kinds pose; None where torch's own code computes them.

    Args:
        kinds: shape and type of input, weight, bias, residual operand, and the batch norm's parts; None for none.
        post_ops, slope: of an :class:`Epilogue`.
        geometry: of the convolution.
    """
    fused = _prepare(kinds, with_slope(post_ops, slope), geometry)
    return None if isinstance(fused, str) else fused.spec


def pack_weights(
    kinds: tuple[Any, ...],
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    geometry: Geometry,
    packed_limit: int | None,
) -> None:
    """Packs the weights of calls to come, where they are this package's and their machine code is at hand.

    Args:
        kinds: as of :func:`spec_of`.
        weight, bias: of the calls.
        epilogue: likewise; its residual operand is not looked at.
        geometry: of the convolution.
        packed_limit: bytes that the packed weights may take.

    Raises:
        MemoryError: there is none for the copies or the packed weights.
    """
    fused = _prepare(kinds, with_slope(epilogue.post_ops, epilogue.slope), geometry)
    if isinstance(fused, str):
        return
    # what is wrong with them is for the call to say
    with contextlib.suppress(ValueError):
        weights = _weights(fused, weight, bias, epilogue.batch_norm, epilogue.epsilon)
        EXECUTOR.pack(fused.spec, weights, packed_limit)


def bound_call(
    kinds: tuple[Any, ...],
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    geometry: Geometry,
    packed_limit: int | None,
    whole: Tensor,
) -> tuple[BoundCall, Place] | None:
    """What calls with these weights do, and where the weights lie; None where it is not all at hand, or torch's.

    Args:
        kinds, weight, bias, epilogue, geometry, packed_limit: as of :func:`pack_weights`.
        whole: what the weight is a view of a part of, or the weight.

    Raises:
        MemoryError: there is none for the copies.
    """
    vectors = [tensor for tensor in (bias, *epilogue.batch_norm, epilogue.slope) if tensor is not None]
    held = [(tensor, interchange.wrap(tensor.detach()).numpy()) for tensor in (whole, weight, *vectors)]
    if any(array.__array_interface__["data"][0] != tensor.data_ptr() for tensor, array in held):
        # a copy, in which nobody will write
        return None
    every, kernel, *parts = (array for _, array in held)
    # before anything is made of them
    contents = [(part, part.tobytes()) for part in parts]
    fused = _prepare(kinds, with_slope(epilogue.post_ops, epilogue.slope), geometry)
    if isinstance(fused, str) or not digest.is_dense(every):
        return None
    norm, _ = _norm(fused, epilogue.batch_norm, epilogue.epsilon)
    values, (problem, use) = None if bias is None else parts[0], fused.convolution
    place = STORE.place(kernel.transpose(WEIGHT_AXES), values, problem.spec.dtype, use, norm, contents, every)
    found = None if place is None else EXECUTOR.at_hand(fused.spec, place.weights, packed_limit)
    if place is None or found is None:
        return None
    call, packed = found
    return (BoundCall(call, packed), place) if isinstance(call, CpuCall) else None


def _by_kernel(
    fused: _Fused,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    batch_norm: Sequence[Tensor | None],
    epsilon: float,
    residual: Tensor | None,
    packed_limit: int | None,
) -> Tensor | str:
    """The result, or why these values have none: no weights can hold them.

    Raises:
        ValueError, MemoryError: as :meth:`tvm_conv3d.runtime.executor.Executor.convolve`.
    """
    try:
        weights = _weights(fused, weight, bias, batch_norm, epsilon)
    except ValueError as error:
        return str(error)
    source = interchange.with_channels_last(interchange.wrap(x))
    added = None if residual is None else interchange.with_channels_last(interchange.wrap(residual))
    return EXECUTOR.convolve(fused.spec, source, weights, added, packed_limit)


def _weights(
    fused: _Fused, weight: Tensor, bias: Tensor | None, batch_norm: Sequence[Tensor | None], epsilon: float
) -> Weights:
    """The weights with the batch norm folded into them.

    Raises:
        ValueError: it can't be.
        MemoryError: there is none for the copies.
    """
    norm, norm_at = _norm(fused, batch_norm, epsilon)
    return weights_of(weight, bias, fused.convolution, norm, norm_at)


def _norm(
    fused: _Fused, batch_norm: Sequence[Tensor | None], epsilon: float
) -> tuple[BatchNorm, int] | tuple[None, None]:
    """The batch norm that is folded into the weights, and where its statistics lie."""
    if fused.affine is None:
        return None, None
    rows = [row for row in batch_norm if row is not None]
    norm = BatchNorm(_joined(rows), *fused.affine, epsilon, fused.transposed, fused.spec.groups)
    return norm, rows[0].data_ptr()


def _joined(rows: Sequence[Tensor]) -> np.ndarray:
    """Small vectors as a new one."""
    joined = torch.cat(rows)
    # NumPy has no bfloat16; the values are what counts
    return (joined.float() if joined.dtype == torch.bfloat16 else joined).numpy()


def _prepare(kinds: tuple[Any, ...], chain: tuple[str, ...] | None, geometry: Geometry) -> _Fused | str:
    """What calls need of tensors of these kinds, in the order of a key, or why torch's own code is asked."""
    x, weight, bias, residual, *batch_norm = kinds
    if chain is None:
        return f"{PRELU} by other slopes than one that is finite"
    if len(batch_norm) not in (0, 4) or None in (x, weight, *batch_norm[:2]):
        return "a batch norm of other parts than its statistics and what is affine"
    norms = [kind for kind in batch_norm if kind is not None]
    if len(set(norms)) > 1 or any(dtype not in _NORM_DTYPES.get(x[1], ()) for _, dtype in norms):
        return f"a batch norm of shapes and types {', '.join(f'{tuple(shape)} {dtype}' for shape, dtype in norms)}"
    if norms and bias is None:
        # there is one when the norm is folded
        bias = (norms[0][0], x[1])
    prepared = prepare((x, weight) if bias is None else (x, weight, bias), geometry, chain)
    if isinstance(prepared, str):
        return prepared
    wanted = (prepared.problem.spec.output_shape, x[1]) if prepared.problem.spec.residual else None
    given = None if residual is None else (tuple(residual[0]), residual[1])
    if given != wanted:
        return f"a residual operand that is {given}, where the result is {wanted}"
    affine = (batch_norm[2] is not None, batch_norm[3] is not None) if norms else None
    return _Fused(prepared, replace(prepared.problem.spec, data_format=CHANNELS_LAST), affine)
