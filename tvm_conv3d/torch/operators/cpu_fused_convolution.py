"""The fused operator on tensors in the CPU's memory: one kernel, or torch's own functions where that can't be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.operators.composition import Epilogue, composed, in_channels_last
from tvm_conv3d.torch.operators.cpu_convolution import DTYPES, EXECUTOR, MAX_CALLS, Prepared, prepare, weights_of
from tvm_conv3d.torch.operators.geometry import Geometry
from tvm_conv3d.torch.operators.post_ops import PRELU, with_slope

#: Types of batch norms beside those of inputs: parameters of float32 are usual beside half types.
_NORM_DTYPES = {dtype: {dtype, torch.float32} if dtype.itemsize == 2 else {dtype} for dtype in DTYPES}


class _Fused(NamedTuple):
    """What calls have in common whose shapes, types and arguments are the same.

    Attributes:
        convolution: of calls of the convolution with these steps.
        affine: whether there are the batch norm's weight and its bias; None for no batch norm.
    """

    convolution: Prepared
    affine: tuple[bool, bool] | None


_calls: Recent[Any, _Fused | str] = process.keep("torch: checked calls of fused convolutions", Recent(MAX_CALLS))


def fused_convolution_of(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """`post_ops(batch_norm(convolution(x) + bias))` in a fresh tensor of `torch.channels_last_3d` memory.

    The batch norm is folded into the weights (:mod:`tvm_conv3d.runtime.folding`); residual operand and steps are
    part of the convolution's kernel.

    Args:
        x: (batch, channels, depth, height, width), in the CPU's memory, of any strides.
        weight, bias: as `torch.nn.functional` takes them.
        arguments: of :class:`Epilogue`, then of :class:`Geometry`.

    Raises:
        ValueError, RuntimeError: as :func:`tvm_conv3d.torch.operators.composition.composed`.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    epilogue, geometry = Epilogue(*arguments[:5]), Geometry(*arguments[5:])
    batch_norm, epsilon, residual, slope, post_ops = epilogue
    tensors = (x, weight, bias, residual, *batch_norm)
    kinds = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors)
    chain = with_slope(post_ops, slope)
    key = (kinds, chain, epsilon, geometry.key)
    fused = _calls.get(key)
    if fused is None:
        fused = _prepare(kinds, chain, geometry)
        _calls.put(key, fused)
    if isinstance(fused, str):
        return _by_torch(fused, x, weight, bias, epilogue, geometry)
    prepared, norm, norm_at = fused.convolution, None, None
    if fused.affine is not None:
        norm = BatchNorm(_values(batch_norm), *fused.affine, epsilon, geometry.transposed, geometry.groups)
        norm_at = batch_norm[0].data_ptr()
    try:
        weights = weights_of(weight, bias, prepared, norm, norm_at)
    except ValueError as error:
        # of these values: others may do
        return _by_torch(str(error), x, weight, bias, epilogue, geometry)
    source = interchange.with_channels_last(interchange.wrap(x))
    added = None if residual is None else interchange.with_channels_last(interchange.wrap(residual))
    try:
        result = EXECUTOR.convolve(prepared.problem.inside, source, weights, added)
    except ValueError as error:
        # no algorithm takes it within the limit of workspace, say
        _calls.put(key, str(error))
        return _by_torch(str(error), x, weight, bias, epilogue, geometry)
    counting.count_ours()
    return result


def _values(batch_norm: Sequence[Tensor | None]) -> Any:
    """All that a batch norm's parameters hold, as one array."""
    return interchange.wrap(torch.cat([tensor for tensor in batch_norm if tensor is not None])).numpy()


def _by_torch(
    reason: str, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, geometry: Geometry
) -> Tensor:
    counting.count_torch(reason)
    return in_channels_last(composed(x, weight, bias, epilogue, geometry))


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
    return _Fused(prepared, (batch_norm[2] is not None, batch_norm[3] is not None) if norms else None)
