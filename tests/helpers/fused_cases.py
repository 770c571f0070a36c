"""Fused convolutions of torch's tensors, and what they are in float64; for tests that have made sure of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.torch.operators import geometry
from tvm_conv3d.torch.operators.composition import Epilogue, composed

LAST = torch.channels_last_3d

ONE, NONE = (1, 1, 1), (0, 0, 0)


@dataclass(frozen=True)
class Geometry:
    """Sizes and arguments of a convolution."""

    channels: int = 6
    filters: int = 4
    kernel: tuple[int, ...] = (3, 3, 3)
    stride: tuple[int, ...] = ONE
    padding: tuple[int, ...] = NONE
    dilation: tuple[int, ...] = ONE
    transposed: bool = False
    output_padding: tuple[int, ...] = NONE
    groups: int = 1
    size: tuple[int, ...] = (7, 6, 8)
    batch: int = 2

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operator's last ones."""
        return (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)


GEOMETRIES = {
    "pointwise": Geometry(kernel=ONE),
    "plain": Geometry(padding=ONE),
    "wide": Geometry(kernel=(5, 5, 5), padding=(2, 2, 2), filters=3),
    "strided": Geometry(stride=(2, 1, 2), padding=ONE),
    "dilated": Geometry(dilation=(1, 2, 2), padding=(0, 2, 1)),
    "grouped": Geometry(groups=2, padding=ONE),
    "depthwise": Geometry(groups=6, filters=12, padding=ONE),
    "six pads": Geometry(padding=(0, 1, 2, 0, 1, 1), stride=(1, 2, 1)),
    "one channel": Geometry(channels=1, filters=1, padding=ONE),
    "transposed": Geometry(kernel=(2, 2, 2), stride=(2, 2, 2), transposed=True),
    "transposed odd": Geometry(stride=(2, 2, 2), padding=ONE, transposed=True, output_padding=ONE),
    "transposed groups": Geometry(stride=(2, 1, 2), padding=ONE, transposed=True, groups=2, filters=8),
    "transposed depthwise": Geometry(kernel=(2, 2, 2), stride=(2, 2, 2), transposed=True, groups=6, filters=6),
}

#: Chains with residual operands and slopes where they take some.
CHAINS = [
    (),
    ("relu",),
    ("leaky_relu:0.01",),
    ("add", "relu"),
    ("relu", "add"),
    ("prelu",),
    ("silu",),
    ("gelu",),
    ("add", "prelu", "hard_tanh:-0.5:2"),
]


@dataclass
class Case:
    """One call's tensors and arguments."""

    geometry: Geometry
    x: Any
    weight: Any
    bias: Any = None
    batch_norm: Any = ()
    epsilon: float = 1e-3
    residual: Any = None
    slope: Any = None
    post_ops: tuple[str, ...] = ()

    @classmethod
    def random(
        cls,
        geometry: Geometry,
        post_ops: tuple[str, ...] = (),
        dtype: Any = torch.float32,
        bias: bool = True,
        norm: str = "affine",
    ) -> Case:
        """Random tensors; `norm` is affine, bare, weight, bias or none."""
        groups, channels, filters = geometry.groups, geometry.channels, geometry.filters
        shape = (channels, filters // groups) if geometry.transposed else (filters, channels // groups)
        weight = torch.randn(*shape, *geometry.kernel) / (shape[1] * np.prod(geometry.kernel)) ** 0.5
        case = cls(geometry, torch.randn(geometry.batch, channels, *geometry.size), weight, post_ops=post_ops)
        case.bias = torch.randn(filters) if bias else None
        if norm != "none":
            rows = [torch.randn(filters), torch.rand(filters) + 0.1, torch.randn(filters), torch.randn(filters)]
            rows[2] = rows[2] if norm in ("affine", "weight") else None
            rows[3] = rows[3] if norm in ("affine", "bias") else None
            case.batch_norm = rows
        if "prelu" in post_ops:
            case.slope = torch.tensor([0.3])
        case = case.to(dtype)
        if "add" in post_ops:
            case.residual = torch.randn(expected(replace(case, post_ops=())).shape).to(dtype)
        return case

    def to(self, dtype: Any) -> Case:
        """The same in another type."""
        moved = {
            name: None if value is None else value.to(dtype)
            for name, value in vars(self).items()
            if name in ("x", "weight", "bias", "residual", "slope")
        }
        rows = [None if row is None else row.to(dtype) for row in self.batch_norm]
        return replace(self, **moved, batch_norm=rows)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of the operator."""
        return (
            self.x,
            self.weight,
            self.bias,
            list(self.batch_norm),
            self.epsilon,
            self.residual,
            self.slope,
            list(self.post_ops),
            *self.geometry.arguments,
        )

    def run(self) -> Any:
        """What the operator makes of it."""
        return torch.ops.tvm_conv3d.fused_convolution(*self.arguments)


def expected(case: Case) -> np.ndarray:
    """What a call computes, in float64, step by step."""
    case, geometry = case.to(torch.float64), case.geometry
    stride, padding, dilation, transposed, output_padding, groups = geometry.arguments
    if transposed:
        y = functional.conv_transpose3d(
            case.x, case.weight, case.bias, stride, padding, output_padding, groups, dilation
        )
    else:
        around = padding if len(padding) == 6 else tuple(pad for pad in padding for _ in range(2))
        x = functional.pad(case.x, [around[i] for i in (4, 5, 2, 3, 0, 1)])
        y = functional.conv3d(x, case.weight, case.bias, stride, NONE, dilation, groups)
    values = y.detach().numpy()
    if case.batch_norm:
        mean, variance, weight, bias = (
            None if row is None else row.detach().numpy().reshape(-1, 1, 1, 1) for row in case.batch_norm
        )
        values = (values - mean) / np.sqrt(variance + case.epsilon)
        with np.errstate(invalid="ignore"):
            values = values * (1 if weight is None else weight) + (0 if bias is None else bias)
    slope = None if case.slope is None else case.slope.item()
    steps = tuple(f"leaky_relu:{slope!r}" if step == "prelu" else step for step in case.post_ops)
    chain = Conv3DSpec(1, ONE, 1, 1, ONE, post_ops=steps)
    residual = None if case.residual is None else case.residual.detach().numpy()
    return oracle.finish(chain, values, residual)


def by_torch(case: Case) -> Any:
    """What torch's own functions make of a case."""
    tensors = case.arguments
    return composed(*tensors[:3], Epilogue(*tensors[3:8]), geometry.Geometry(*tensors[8:]))


def error(result: Any, case: Case) -> float:
    """Of a result, relative, in the 2-norm."""
    wanted = expected(case)
    assert tuple(result.shape) == wanted.shape
    return oracle.relative_error(result.detach().double().numpy(), wanted)
