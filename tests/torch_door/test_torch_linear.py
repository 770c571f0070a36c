"""Large linear layers of graphs go to oneDNN where that is faster."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import check, replayed  # noqa: E402
from tvm_conv3d.torch.graph import linear  # noqa: E402
from tvm_conv3d.torch.operators.linear import LINEAR  # noqa: E402

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this torch has no oneDNN",
)


class Tokens(nn.Module):
    """Patches of a volume through two linear layers, as of a transformer, and a convolution of what they become."""

    def __init__(self, bias: bool = True, count: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv3d(1, 32, 2, stride=2)
        self.layers = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.GELU(), nn.Linear(48, 32, bias=bias))
        self.last = nn.Conv3d(32, 3, 3)

    def forward(self, x: Any) -> Any:
        y = self.patches(x)
        tokens = self.layers(y.flatten(2).transpose(1, 2))
        return self.last(tokens.transpose(1, 2).reshape(y.shape))


X = torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Shapes of what oneDNN is to multiply, in graphs that are rewritten with layers of any size."""
    found: list[tuple[Any, ...]] = []
    real = linear._is_large

    def noted(x: Any, weight: Any) -> bool:
        large = real(x, weight)
        if large:
            found.append((tuple(linear.info(x).shape), tuple(linear.info(weight).shape)))
        return large

    monkeypatch.setattr(linear, "_pays", lambda: True)
    monkeypatch.setattr(linear, "_is_large", noted)
    monkeypatch.setattr(linear, "_MIN_MACS", 1)
    return found


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_replays(bias: bool, calls: list[tuple[Any, ...]]) -> None:
    module = Tokens(bias).eval()
    fast = ours.accelerate(module, X)
    for _ in range(2):
        check(fast, module, X)
    assert replayed(fast) == 1
    assert calls == [((1, 216, 32), (48, 32)), ((1, 216, 48), (32, 48))]
    # weights may change, as all parameters
    with torch.no_grad():
        module.layers[0].weight.mul_(2)
    check(fast, module, X)


@needs_onednn
def test_compiled_graphs(calls: list[tuple[Any, ...]]) -> None:
    module = Tokens().eval()
    torch.compiler.reset()
    check(torch.compile(module, backend="tvm_conv3d", fullgraph=True), module, X)
    assert len(calls) == 2


def test_layers_that_stay_as_they_are(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    module = Tokens().eval()
    # few rows
    check(ours.accelerate(module, X[..., :8, :8]), module, X[..., :8, :8])
    assert calls == []
    # other types
    fast = ours.accelerate(Tokens().double().eval(), X.double())
    assert replayed(fast) == 1
    monkeypatch.setattr(linear, "_pays", lambda: False)
    before = len(calls)
    check(ours.accelerate(module, X), module, X)
    assert len(calls) == before


@needs_onednn
@pytest.mark.parametrize("shape", [(40, 24), (1, 40, 24), (2, 3, 5, 24), (0, 24)])
def test_the_operator(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(24, 17).T, torch.randn(34)[::2]
    for input in (x, x.flip(-1).transpose(0, -1).contiguous().transpose(0, -1)):
        for given in ((weight, bias), (weight.contiguous(), None)):
            result = LINEAR(input, *given)
            exact = torch.nn.functional.linear(*(each if each is None else each.double() for each in (input, *given)))
            assert result.shape == exact.shape and result.dtype == torch.float32 and result.is_contiguous()
            torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_gradients_are_torchs() -> None:
    given = [torch.randn(shape, requires_grad=True) for shape in ((5, 3), (4, 3), (4,))]
    assert torch.autograd.gradcheck(LINEAR, [each.detach().double().requires_grad_() for each in given])
    found = torch.autograd.grad(LINEAR(*given).square().sum(), given)
    for one, other in zip(
        found, torch.autograd.grad(torch.nn.functional.linear(*given).square().sum(), given), strict=True
    ):
        torch.testing.assert_close(one, other)
