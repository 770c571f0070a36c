"""Gradients of a convolution as functions of arrays: of its input."""

from __future__ import annotations

import functools
from typing import Any

from tvm_conv3d.engine import planner
from tvm_conv3d.functional import convolution
from tvm_conv3d.runtime import tracing
from tvm_conv3d.spec import CHANNELS_LAST


@functools.partial(tracing.untraced, what="tvm_conv3d.conv3d_data_gradient")
def conv3d_data_gradient(
    gradient: Any,
    w: Any,
    input_size: Any,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: Any = 1,
    data_format: Any = CHANNELS_LAST,
    target: Any = None,
    accuracy: str = "default",
    workspace_limit: int = planner.DEFAULT_LIMIT,
) -> Any:
    """The gradient of the input of :func:`tvm_conv3d.conv3d`, from that of its output.

    It is a transposed convolution. With strides of 1 all algorithms of convolutions serve, with others it is computed
    by phases (:mod:`tvm_conv3d.compute.shared.transposed`). Arrays and weights are taken as by
    :func:`tvm_conv3d.conv3d`; half types are summed up in float32.

    Args:
        gradient: that of the convolution's output, of its shape: (batch, depth, height, width, filters), or the
            channels first, of any strides.
        w: the convolution's weights: (kernel depth, kernel height, kernel width, channels / groups, filters).
        input_size: depth, height and width of the convolution's input: three integers of at least 0, or one for all.
        strides, padding, dilation, groups, data_format: the convolution's.
        target, accuracy, workspace_limit: as of :func:`tvm_conv3d.conv3d`.

    Returns:
        A new array or tensor of the convolution's input's shape, of the kind and type of `gradient`. Cells that no
        window reads are 0.

    Raises:
        ValueError: as :func:`tvm_conv3d.conv3d`, or an input of `input_size` has an output of another size.
        TypeError, RuntimeError, MemoryError: as :func:`tvm_conv3d.conv3d`.

    Example:

    >>> import numpy as np
    >>> gradient, w = np.ones((1, 2, 2, 2, 5), "float32"), np.ones((3, 3, 3, 4, 5), "float32")
    >>> conv3d_data_gradient(gradient, w, (5, 5, 6), strides=2).shape
    (1, 5, 5, 6, 4)
    """
    arguments = (strides, padding, dilation, groups, data_format, (), input_size)
    return convolution.convolved(
        "conv3d_data_gradient", (gradient, w, None, None), arguments, (target, accuracy, workspace_limit)
    )
