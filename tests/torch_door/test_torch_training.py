"""Steps of training: plain, in autocast, compiled and with checkpoints; gradients against torch's float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.checkpoint import checkpoint  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402

#: Operators of a step: forward three, backward the gradients of three weights, and of two layers' inputs.
FORWARD, BACKWARD = 3, 5


class Net(torch.nn.Module):
    """Down and up again; of smooth activations, as what is rounded must not change which cells have gradients.

    Args:
        modules: that convolutions are taken of.
        checkpointed: whether the first two layers are computed once more in the backward pass.
    """

    def __init__(self, modules: Any, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = modules.Conv3d(2, 16, 3, padding=1)
        self.down = modules.Conv3d(16, 24, 3, stride=2, padding=1)
        self.up = modules.ConvTranspose3d(24, 4, 2, stride=2)
        self._checkpointed = checkpointed

    def encoded(self, x: Any) -> Any:
        return self.down(self.first(x).tanh()).tanh()

    def forward(self, x: Any) -> Any:
        inside = checkpoint(self.encoded, x, use_reentrant=False) if self._checkpointed else self.encoded(x)
        return self.up(inside)


def both(checkpointed: bool = False) -> tuple[Net, Net]:
    """A network, and the same of torch's modules in float64."""
    mine, theirs = Net(ours, checkpointed), Net(torch.nn)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs.double()


def batch() -> tuple[Any, Any]:
    return torch.randn(2, 2, 6, 8, 10), torch.randn(2, 4, 6, 8, 10)


def loss_of(net: Callable[[Any], Any], x: Any, wanted: Any) -> Any:
    # autocast's results are of half types, of which no sum is made here
    return (net(x).to(wanted.dtype) - wanted).square().mean()


def assert_gradients(mine: Net, theirs: Net, bound: float, x: Any, wanted: Any) -> None:
    """Those of `mine`, which are there, against float64's, relative to the largest of each parameter."""
    theirs.zero_grad()
    loss_of(theirs, x.double(), wanted.double()).backward()
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and one.grad.dtype == torch.float32
        error = (one.grad.double() - other.grad).abs().max() / other.grad.abs().max()
        assert error < bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_steps_of_an_optimizer(memory_format: Any) -> None:
    """Each step's gradients are those of the weights that the step before has left."""
    mine, theirs = both()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        x, wanted = batch()
        x = x.to(memory_format=memory_format)
        optimizer.zero_grad()
        loss_of(mine, x, wanted).backward()
        assert ours.counters() == ours.Counters((step + 1) * (FORWARD + BACKWARD), {})
        assert_gradients(mine, theirs, 1e-5, x, wanted)
        optimizer.step()
        theirs.load_state_dict(mine.state_dict())


def test_autocast() -> None:
    """In bfloat16, with gradients of float32 for the parameters of float32."""
    mine, theirs = both()
    x, wanted = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(mine, x, wanted)
    loss.backward()
    assert ours.counters() == ours.Counters(FORWARD + BACKWARD, {})
    assert_gradients(mine, theirs, 3e-2, x, wanted)


def test_a_step_in_float16_with_scaled_loss() -> None:
    mine, theirs = both()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    x, wanted = batch()
    with torch.autocast("cpu", torch.float16):
        loss = loss_of(mine, x, wanted)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert ours.counters() == ours.Counters(FORWARD + BACKWARD, {})
    assert_gradients(mine, theirs, 5e-3, x, wanted)
    before = mine.first.weight.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(before, mine.first.weight)


def test_a_compiled_step() -> None:
    """Forward and backward are graphs of these operators, each of one part."""
    mine, theirs = both()
    step = torch.compile(lambda x, wanted: loss_of(mine, x, wanted), fullgraph=True, backend="aot_eager")
    for number in range(2):
        x, wanted = batch()
        mine.zero_grad()
        step(x, wanted).backward()
        assert ours.counters() == ours.Counters((number + 1) * (FORWARD + BACKWARD), {})
        assert_gradients(mine, theirs, 1e-5, x, wanted)


def test_checkpoints() -> None:
    """Two of three layers are computed twice."""
    mine, theirs = both(checkpointed=True)
    x, wanted = batch()
    loss_of(mine, x, wanted).backward()
    assert ours.counters() == ours.Counters(FORWARD + 2 + BACKWARD, {})
    assert_gradients(mine, theirs, 1e-5, x, wanted)


def test_gradients_add_up_over_batches() -> None:
    mine, theirs = both()
    x, wanted = batch()
    for half in (slice(0, 1), slice(1, 2)):
        (0.5 * loss_of(mine, x[half], wanted[half])).backward()
    assert ours.counters() == ours.Counters(2 * (FORWARD + BACKWARD), {})
    assert_gradients(mine, theirs, 1e-5, x, wanted)


def test_frozen_layers_have_no_gradients() -> None:
    """None is computed in vain: of the first layer neither the weight's nor, so, any of an input before it."""
    mine, theirs = both()
    for parameter in (*mine.first.parameters(), *mine.down.parameters()):
        parameter.requires_grad_(False)
    x, wanted = batch()
    loss_of(mine, x, wanted).backward()
    assert ours.counters() == ours.Counters(FORWARD + 1, {})
    loss_of(theirs, x.double(), wanted.double()).backward()
    torch.testing.assert_close(mine.up.weight.grad.double(), theirs.up.weight.grad, rtol=1e-4, atol=1e-6)
    assert mine.first.weight.grad is None
