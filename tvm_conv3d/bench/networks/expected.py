"""What a network's outputs are compared with: PyTorch's eager run in float64, or in float32 where memory is short."""

from __future__ import annotations

import copy
import functools
import math
import resource
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils._pytree import tree_leaves

#: Bytes that a convolution in float64 may take for its windows; torch copies those of a whole result otherwise.
SLAB = 256 << 20

#: Bytes beside a network's own that a run in float64 is given.
_ROOM = 1 << 30


def outputs(module: torch.nn.Module, x: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
    """The element type and the output tensors of the eager run."""
    before = peak_bytes()
    single = module(x)
    # numbers of twice the size, and padded copies
    needed = 3 * (peak_bytes() - before) + _ROOM
    if needed > _free_bytes():
        return "float32", tree_leaves(single)
    del single
    return "float64", tree_leaves(_in_float64(module)(x.double()))


def error(found: Any, expected: list[torch.Tensor]) -> float:
    """The relative error of a network's outputs (2-norm); infinite where they cannot be compared."""
    tensors = tree_leaves(found)
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected]:
        return math.inf
    off = sum(_square(tensor.double() - right) for tensor, right in zip(tensors, expected, strict=True))
    relative = math.sqrt(off / sum(_square(right.double()) for right in expected))
    return relative if math.isfinite(relative) else math.inf


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _square(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach())) ** 2


def _free_bytes() -> int:
    """What the system can give without swapping; 0 where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def _in_float64(module: torch.nn.Module) -> torch.nn.Module:
    wide = copy.deepcopy(module).double()
    for part in wide.modules():
        if isinstance(part, torch.nn.Conv3d):
            part._conv_forward = functools.partial(_in_slabs, part)
    return wide


def _in_slabs(conv: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution by torch's own code, some planes of the result at a time."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    stride, window = conv.stride[0], conv.dilation[0] * (weight.shape[2] - 1) + 1
    planes = (x.shape[2] - window) // stride + 1
    plane_bytes = 8 * weight[0].numel() * x.shape[3] * x.shape[4]
    step = max(1, SLAB // plane_bytes)
    slabs = []
    for first in range(0, planes, step):
        last = min(first + step, planes) - 1
        part = x[:, :, first * stride : last * stride + window]
        slabs.append(functional.conv3d(part, weight, bias, conv.stride, 0, conv.dilation, conv.groups))
    return torch.cat(slabs, 2)
