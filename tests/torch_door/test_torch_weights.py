"""Weights that change are seen, however they change, and what trains leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from torch_cases import by_oracle
from tvm_conv3d.runtime import kept_weights

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_modules import PAIRS, all_ours, check, pair  # noqa: E402


def through_data(module: Any, new: Any) -> None:
    module.weight.data.copy_(new)


def through_numpy(module: Any, new: Any) -> None:
    module.weight.detach().numpy()[...] = new.numpy()


def new_data(module: Any, new: Any) -> None:
    module.weight.data = new.clone()


def in_place(module: Any, new: Any) -> None:
    with torch.no_grad():
        module.weight.copy_(new)


def new_parameter(module: Any, new: Any) -> None:
    module.weight = torch.nn.Parameter(new)


def state_dict(module: Any, new: Any) -> None:
    module.load_state_dict({"weight": new, "bias": module.bias.detach().clone()})


def assigned(module: Any, new: Any) -> None:
    module.load_state_dict({"weight": new, "bias": module.bias.detach().clone()}, assign=True)


def one_element(module: Any, new: Any) -> None:
    # the rest first, unseen by any call
    module.weight.data.copy_(new)
    module.weight.data.view(-1)[-1] += 1


@pytest.mark.parametrize(
    "change", [through_data, through_numpy, new_data, in_place, new_parameter, state_dict, assigned, one_element]
)
def test_changed_weights_are_seen(change: Callable[[Any, Any], None]) -> None:
    _, module = pair()
    twin = copy.deepcopy(module)
    tied = ours.Conv3d(4, 6, 3, padding=1)
    tied.weight = module.weight
    x = torch.randn(1, 4, 5, 6, 7)
    with torch.no_grad():
        before = module(x)
        for _ in range(2):
            change(module, torch.randn(6, 4, 3, 3, 3))
            check(module(x), by_oracle(module, x))
        assert torch.equal(twin(x), before)
        check(tied(x), by_oracle(tied, x))
        assert not torch.allclose(module(x), before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_torchs(optimizer: Any) -> None:
    theirs, _ = pair()
    module = ours.Conv3d.from_torch(copy.deepcopy(theirs))
    x, wanted = torch.randn(2, 4, 5, 6, 7), torch.randn(2, 6, 5, 6, 7)
    losses = []
    for each in (theirs, module):
        steps = optimizer(each.parameters(), lr=0.05)
        for _ in range(5):
            steps.zero_grad()
            loss = torch.nn.functional.mse_loss(each(x), wanted)
            loss.backward()
            steps.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(module.weight, theirs.weight, rtol=1e-4, atol=1e-4)


def test_training_leaves_no_weights_behind() -> None:
    # those of other tests make room for this one's
    for most in (0, kept_weights.MAX_BYTES):
        kept_weights.set_kept_weights(most)
    first, second = ours.Conv3d(4, 6, 3), ours.Conv3d(6, 6, 3)
    x = torch.randn(1, 4, 7, 7, 7)
    second(first(x))
    count, size = len(kept_weights.STORE), kept_weights.STORE.nbytes
    for _ in range(4):
        with torch.no_grad():
            for parameter in (*first.parameters(), *second.parameters()):
                parameter.add_(0.1)
        y = first(x)
        check(y, by_oracle(first, x))
        check(second(y), by_oracle(second, y))
    assert (len(kept_weights.STORE), kept_weights.STORE.nbytes) == (count, size)


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("transposed", [False, True])
def test_parametrized_weights(how: str, transposed: bool) -> None:
    theirs, _ = pair(transposed)
    module = PAIRS[transposed][1].from_torch(copy.deepcopy(theirs))
    for each in (theirs, module):
        torch.manual_seed(3)
        getattr(torch.nn.utils.parametrizations, how)(each)
        each.eval()
    x = torch.randn(1, 4, 5, 6, 7)
    for _ in range(2):
        torch.testing.assert_close(module(x), theirs(x), rtol=1e-4, atol=1e-4)
        first = next(iter(module.parametrizations.weight.parameters()))
        other = next(iter(theirs.parametrizations.weight.parameters()))
        with torch.no_grad():
            first.mul_(1.5)
            other.copy_(first)
    assert all_ours(2)
