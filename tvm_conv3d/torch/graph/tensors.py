"""What is known of the tensors in a graph: where they came from decides what may be rewritten."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.fx import Node

_KEY = "tvm_conv3d"


class TensorInfo(NamedTuple):
    """What one tensor is.

    Attributes:
        shape, strides: in elements; those of compilers that trace sizes may hold symbols.
        dtype, device: of it.
        storage: equal for tensors that share memory.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int

    @property
    def nbytes(self) -> int:
        """Of all elements; of shapes without symbols."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: torch.Tensor, storage: int) -> TensorInfo:
        """That of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, storage)


def info(node: Node) -> TensorInfo | None:
    """What is known of a node's tensor; None where it is none, or several."""
    return node.meta.get(_KEY)


def set_info(node: Node, value: TensorInfo | None) -> Node:
    """Notes what the node's tensor is, and returns the node."""
    node.meta[_KEY] = value
    return node


class Held:
    """A tensor that no module holds, as a function without arguments: scripts have such constants.

    Args:
        tensor: that it returns.
        name: by which people know it.
    """

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        self.tensor = tensor
        self.name = name
        self.__name__ = "held"

    def __call__(self) -> torch.Tensor:
        return self.tensor
