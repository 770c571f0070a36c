"""Tensors in the CPU's memory as arrays whose channels lie innermost, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from tvm_conv3d.runtime import interchange
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
