"""Derivatives in forward mode of the operators that networks call, beside those of torch's functions in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.autograd import forward_ad  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402

from tvm_conv3d.torch import accelerate  # noqa: E402
from tvm_conv3d.torch.operators.convolution import CONVOLUTION  # noqa: E402
from tvm_conv3d.torch.operators.definitions import DATA_GRADIENT, WEIGHT_GRADIENT  # noqa: E402
from tvm_conv3d.torch.operators.linear import LINEAR  # noqa: E402
from tvm_conv3d.torch.operators.normalization import NORMALIZATION, NORMALIZATION_  # noqa: E402
from tvm_conv3d.torch.operators.training import MAX_POOLING, MAX_POOLING_GRADIENT, RELU_GRADIENT  # noqa: E402

X = torch.randn(2, 4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 3, 6, 5, 7, generator=torch.Generator().manual_seed(2))
GEOMETRY = ([1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)
MATRIX = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
POOLED = torch.randn(2, 4, 3, 2, 3, generator=torch.Generator().manual_seed(4))
CELLS = MAX_POOLING(X, [2, 2, 2])[1]
NORM = (4, None, None, None, None, 1e-5, None, None, [])


def normalized_in_place(x):
    x = x * 1
    NORMALIZATION_(x, *NORM)
    return x


def of_pooled(gradient):
    x = X.double().requires_grad_()
    return torch.autograd.grad(functional.max_pool3d(x, 2), x, gradient, create_graph=True)[0]


CASES = {
    "convolution": (X, lambda x: CONVOLUTION(x, WEIGHT, None, *GEOMETRY), lambda x: functional.conv3d(x, W, padding=1)),
    "weight": (WEIGHT, lambda w: CONVOLUTION(X, w, None, *GEOMETRY), lambda w: functional.conv3d(X64, w, padding=1)),
    "data_gradient": (
        Y,
        lambda y: DATA_GRADIENT(y, WEIGHT, [6, 5, 7], *GEOMETRY),
        lambda y: functional.conv_transpose3d(y, W, padding=1),
    ),
    "weight_gradient": (
        Y,
        lambda y: WEIGHT_GRADIENT(y, X, [3, 3, 3], *GEOMETRY),
        lambda y: functional.conv3d(X64.transpose(0, 1), y.transpose(0, 1), padding=1).transpose(0, 1),
    ),
    "normalization": (X, lambda x: NORMALIZATION(x, *NORM), functional.instance_norm),
    "normalization_": (X, normalized_in_place, functional.instance_norm),
    "max_pooling": (X, lambda x: MAX_POOLING(x, [2, 2, 2])[0], lambda x: functional.max_pool3d(x, 2)),
    "max_pooling_gradient": (
        POOLED,
        lambda y: MAX_POOLING_GRADIENT(y, CELLS, [6, 5, 7], [2, 2, 2]),
        of_pooled,
    ),
    "relu_gradient": (Y, lambda y: RELU_GRADIENT(y, Y), lambda y: torch.where(Y <= 0, 0, y)),
    "linear": (X, lambda x: LINEAR(x, MATRIX, None), lambda x: functional.linear(x, MATRIX.double())),
}
W, X64 = WEIGHT.double(), X.double()


def tangent(function, x, along):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, along))).tangent


@pytest.mark.parametrize("name", CASES)
def test_tangents_are_those_of_torchs_functions(name):
    x, ours, theirs = CASES[name]
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    found, wanted = tangent(ours, x, along), tangent(theirs, x.double(), along.double())
    assert found is not None, "the tangent is lost"
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_tangents_of_an_accelerated_network():
    network = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3), torch.nn.InstanceNorm3d(8), torch.nn.MaxPool3d(2)).eval()
    network.requires_grad_(False)
    along = torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    wanted = tangent(network.double(), X.double(), along.double())
    found = tangent(accelerate(network.float()), X, along)
    assert found is not None, "the tangent is lost"
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
