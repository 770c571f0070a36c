"""Operators that are registered with torch, and their kernels: what modules and rewritten graphs call."""

from tvm_conv3d.torch.operators import normalization

__all__ = ["normalization"]
