"""Instance norm in training, beside torch's in float64: numbers, gradients of any order, and what is left to torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_operators import orders  # noqa: E402  (needs torch)
from tvm_conv3d.torch import accelerate  # noqa: E402
from tvm_conv3d.torch.norms import InstanceNorm3d  # noqa: E402


def pair(affine: bool = True, channels: int = 5, **more: Any) -> tuple[Any, Any]:
    """Ours in float32, and torch's in float64, with the same parameters."""
    mine = InstanceNorm3d(channels, affine=affine, **more)
    for parameter in mine.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    theirs = torch.nn.InstanceNorm3d(channels, affine=affine, **more)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs.double()


def _gradients(norm: Any) -> list[Any]:
    return [parameter.grad for parameter in norm.parameters()]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_numbers_and_gradients_in_all_orders_of_memory(batch: int, affine: bool) -> None:
    for each in orders(torch.randn(batch, 5, 4, 6, 7) + 2):
        mine, theirs = pair(affine)
        x, twin = each.detach().clone().requires_grad_(), each.double().detach().requires_grad_()
        y, wanted = mine(x), theirs(twin)
        assert y.grad_fn.name() == "_InstanceNormBackward"
        outer = torch.randn_like(wanted)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
        y.backward(outer.float())
        wanted.backward(outer)
        found, right = [x.grad, *_gradients(mine)], [twin.grad, *_gradients(theirs)]
        assert len(found) == (3 if affine else 1)
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients() -> None:
    norm = InstanceNorm3d(3, affine=True).double()
    x = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def normed(x: Any, weight: Any, bias: Any) -> Any:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    given = (x, *(parameter.detach().clone().requires_grad_() for parameter in norm.parameters()))
    assert torch.autograd.gradcheck(normed, given)
    assert torch.autograd.gradgradcheck(normed, given)


def test_frozen_parts_get_no_gradients() -> None:
    mine, _ = pair()
    mine.bias.requires_grad_(False)
    x = torch.randn(2, 5, 3, 3, 3)
    mine(x).square().sum().backward()
    assert x.grad is None and mine.bias.grad is None and mine.weight.grad.abs().max() > 0


def test_what_is_torchs() -> None:
    mine, _ = pair()
    x = torch.randn(2, 5, 3, 4, 3)
    tracked, _ = pair(track_running_stats=True)
    for norm, given in ((tracked, x), (mine.half(), x.half()), (pair()[0], x[0])):
        assert norm(given).grad_fn.name() != "_InstanceNormBackward"
    with torch.no_grad():
        assert mine.float()(x).grad_fn is None
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        mine(x[:, :, :1, :1, :1])


def test_accelerated_networks_train_as_torchs() -> None:
    torch.manual_seed(0)
    parts = [torch.nn.Conv3d(2, 4, 3), torch.nn.InstanceNorm3d(4, affine=True), torch.nn.LeakyReLU(0.1, inplace=True)]
    net = torch.nn.Sequential(*parts, torch.nn.Conv3d(4, 2, 3))
    fast = accelerate(copy.deepcopy(net))
    assert type(fast[1]) is InstanceNorm3d and type(net[1]) is torch.nn.InstanceNorm3d
    x = torch.randn(2, 2, 7, 8, 9)
    net.double()(x.double()).square().mean().backward()
    fast(x).square().mean().backward()
    for mine, own in zip(fast.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), own.grad, rtol=1e-4, atol=1e-5)
