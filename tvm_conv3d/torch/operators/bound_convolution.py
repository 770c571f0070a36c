"""The fused operator bound to a module's weights: what it computes while these stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_conv3d.runtime import interchange, output_pool
from tvm_conv3d.runtime.bound_call import BoundCall
from tvm_conv3d.runtime.kept_weights import Place
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.torch import counting


class OverwrittenError(Exception):
    """A residual operand was written over with a result that can't be trusted."""


class BoundConvolution:
    """A call of `torch.ops.tvm_conv3d.fused_convolution` of input and residual operand alone.

    Gradients, modes and transforms of torch are not looked at.

    Attributes:
        over: whether the result is written over the residual operand.

    Args:
        call: of the convolution.
        place: where its weights lie.
        count: of threads.
        general: the operator, with the same weights, of input and residual operand.
        over: whether nobody else sees the residual operand any more, over which the result may be written then.
    """

    #: What :mod:`torch.fx` calls it.
    __name__ = "bound_convolution"

    def __init__(
        self, call: BoundCall, place: Place, count: int, general: Callable[..., Tensor], over: bool = False
    ) -> None:
        self._call, self._place, self._count, self._general = call, place, count, general
        self.over = over and call.may_overwrite
        self._shape = call.spec.output_shape
        self._dtype = numpy_dtype(call.spec.dtype)

    def holds(self) -> bool:
        """Whether the weights are what they were, where they were."""
        return self._place.holds()

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The operator's result.

        Raises:
            MemoryError: there is none for the result or the intermediates.
            OverwrittenError: of operands that are not finite, say; the residual operand is lost.
        """
        if self._call.doubtful:
            return self._general(x, residual)
        added = None if residual is None else self._dense(residual)
        over = added if self.over and isinstance(added, Tensor) else None
        # before a copy of the input, which is not to lie where the result is expected
        result = self._empty() if over is None else over
        source = self._dense(x)
        addresses = result.data_ptr(), _address(source), None if added is None else _address(added)
        if not self._call.fill(*addresses, self._count):
            if over is not None:
                raise OverwrittenError
            return self._general(x, residual)
        counting.count_ours()
        return result

    def _empty(self) -> Tensor:
        return interchange.torch_tensor(output_pool.empty(self._shape, self._dtype).transpose(interchange.TO_FIRST))

    def _dense(self, tensor: Tensor) -> Tensor | np.ndarray:
        """What holds the elements with the channels innermost: the tensor, where it does, else a copy."""
        if tensor.is_contiguous(memory_format=torch.channels_last_3d):
            return tensor
        return interchange.prepare(
            interchange.with_channels_last(interchange.wrap(tensor)).numpy(), self._call.spec.dtype
        )


def _address(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.data_ptr()
    address, _ = values.__array_interface__["data"]
    return int(address)
