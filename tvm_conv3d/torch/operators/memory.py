"""Tensors in the CPU's memory as arrays whose channels lie innermost, and back; memory for results of torch's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from tvm_conv3d.runtime import interchange, output_pool
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.torch.arguments import DTYPES


def channels_inside(x: Tensor) -> tuple[np.ndarray, Callable[[np.ndarray], Tensor]]:
    """A tensor of (batch, channels, depth, height, width) as a C-contiguous array whose channels are the last axis.

    Returns:
        The array, which shares the tensor's memory where that lies so, else a copy made by all threads; and what turns
        a result of the same order into a tensor in `torch.channels_last_3d`, without a copy.

    Raises:
        MemoryError: there is none for a copy.
    """
    source = interchange.with_channels_last(interchange.wrap(x))
    return interchange.prepare(source.numpy(), DTYPES[x.dtype]), source.restore


def empty_contiguous(like: Tensor) -> Tensor:
    """A contiguous tensor of the shape and type of another, with uninitialised values, in memory of the output pool.

    Raises:
        MemoryError: there is none.
    """
    return interchange.wrap(like).restore(output_pool.empty(tuple(like.shape), numpy_dtype(DTYPES[like.dtype])))
