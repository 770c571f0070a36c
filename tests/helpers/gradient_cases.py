"""A convolution's gradients by differences, and in torch's float64, from what shares no code with the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from problems import data
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads

#: Few and many channels and filters, odd ones, vectors in part, groups of all kinds, positions of one row.
SHAPES = {
    "stem": Conv3DSpec(1, (6, 17, 18), 3, 33, (3, 5, 7), (1, 2, 2), pads=(Pads(1, 1), Pads(2, 2), Pads(3, 3))),
    "one channel": Conv3DSpec(1, (6, 17, 18), 1, 8, (3, 3, 3), pads=(Pads(1, 1),) * 3),
    "odd": Conv3DSpec(2, (5, 7, 11), 37, 41, (2, 3, 1), pads=(Pads(1, 0), Pads(1, 1), Pads(0, 0))),
    "wide": Conv3DSpec(1, (3, 5, 7), 130, 96, (3, 3, 3), pads=(Pads(1, 1),) * 3),
    "pointwise": Conv3DSpec(3, (5, 6, 7), 24, 48, (1, 1, 1)),
    "temporal": Conv3DSpec(2, (9, 5, 7), 20, 32, (3, 1, 1), pads=(Pads(1, 1), Pads(0, 0), Pads(0, 0))),
    "patches": Conv3DSpec(1, (8, 8, 12), 2, 40, (4, 4, 4), (4, 4, 4)),
    "depthwise": Conv3DSpec(1, (4, 9, 10), 21, 21, (3, 3, 3), pads=(Pads(1, 1),) * 3, groups=21),
    "multiplied": Conv3DSpec(1, (4, 9, 10), 6, 18, (3, 3, 3), pads=(Pads(1, 1),) * 3, groups=6),
    "grouped": Conv3DSpec(1, (4, 9, 10), 32, 48, (3, 1, 3), dilation=(1, 1, 2), groups=8),
    "half": Conv3DSpec(1, (4, 9, 10), 32, 64, (1, 3, 3), groups=2),
}

#: Directions that a gradient is compared along.
_DIRECTIONS = 3


def operands(spec: Conv3DSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, kernel, and gradient of the output, of a forward problem, in the spec's type."""
    x, kernel, _ = data(spec, seed)
    gradient = np.random.default_rng(seed + 1).standard_normal(spec.output_shape).astype(x.dtype)
    return x, kernel, gradient


def arguments_of(spec: Conv3DSpec) -> dict[str, Any]:
    """What the public functions are told of a forward problem."""
    return {
        "strides": spec.strides,
        "padding": spec.pads,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "data_format": spec.data_format,
    }


def assert_by_differences(
    loss: Callable[[np.ndarray], np.ndarray], at: np.ndarray, outer: np.ndarray, found: np.ndarray, bound: float
) -> None:
    """Holds the gradient of `(loss(at) * outer).sum()` against central differences in float64.

    Args:
        loss: of an array like `at`.
        at: where it is derived.
        outer: of the shape of what `loss` returns.
        found: the gradient.
        bound: of the error, relative to the products of the norms of the gradient and of the differences' operands.
    """
    assert found.shape == at.shape
    rng = np.random.default_rng(7)
    at, outer, found = (np.asarray(array).astype(np.float64) for array in (at, outer, found))
    for _ in range(_DIRECTIONS):
        direction = rng.standard_normal(at.shape)
        ends = [loss(at + part * direction) for part in (0.5, -0.5)]
        difference = (ends[0] - ends[1]) * outer
        # short directions leave little but the rounding of both ends
        scale = np.linalg.norm(found) * np.linalg.norm(direction)
        scale += sum(np.linalg.norm(end) for end in ends) * np.linalg.norm(outer)
        assert abs(difference.sum() - (found * direction).sum()) <= bound * max(scale, 1e-30)


def in_torch(spec: Conv3DSpec, x: Any, kernel: Any, gradient: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of input, kernel and bias by torch's float64, in the orders of the arguments."""
    import torch

    first = spec.data_format == CHANNELS_FIRST
    x, gradient = (np.asarray(a).astype(np.float64) for a in (x, gradient))
    x, gradient = (a if first else np.moveaxis(a, -1, 1) for a in (x, gradient))
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (x, np.asarray(kernel).astype(np.float64))]
    tensors = [tensor.requires_grad_() for tensor in (*tensors, torch.zeros(spec.filters, dtype=torch.float64))]
    # torch begins with the last axis, and crops where pads are negative
    padded = torch.nn.functional.pad(tensors[0], [pad for pads in reversed(spec.pads) for pad in pads])
    result = torch.nn.functional.conv3d(
        padded,
        tensors[1].permute(4, 3, 0, 1, 2),
        tensors[2],
        spec.strides,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    of_x, of_kernel, of_bias = (
        found.numpy() for found in torch.autograd.grad(result, tensors, torch.from_numpy(gradient.copy()))
    )
    return (of_x if first else np.moveaxis(of_x, 1, -1)), of_kernel, of_bias


def convolved(spec: Conv3DSpec) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The oracle's convolution of an input and a kernel, without bias and post-ops."""
    plain = replace(spec, bias=False, post_ops=())
    return lambda x, kernel: oracle.convolve(plain, x, kernel)
