"""Compiled graphs that are replayed as those of `accelerate` are: which ones, of which weights, and for how long."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check, network  # noqa: E402
from tvm_conv3d.torch import backend  # noqa: E402
from tvm_conv3d.torch.operators.bound_convolution import BoundConvolution  # noqa: E402

#: Convolutions of the network.
CONVOLUTIONS = 6


class Made:
    """What the backend made, and calls of bound convolutions in it."""

    def __init__(self) -> None:
        self.functions: list[Any] = []
        self.calls = 0

    def calls_of(self, compiled: Any, x: Any = X) -> int:
        """Calls of bound convolutions in a call of a module."""
        before = self.calls
        with torch.inference_mode():
            compiled(x)
        return self.calls - before

    def replays(self) -> list[bool]:
        """Of each function, whether it is a replay."""
        return [isinstance(each, backend.LiftedReplay) for each in self.functions]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    torch._dynamo.reset()
    found, call, own = Made(), BoundConvolution.__call__, backend.LiftedReplay

    def counted(self: BoundConvolution, *operands: Any) -> Any:
        found.calls += 1
        return call(self, *operands)

    class Noted(own):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            found.functions.append(self)

    def inductor(graph_module: Any, *_: Any, **__: Any) -> Any:
        found.functions.append(graph_module.forward)
        return graph_module.forward

    monkeypatch.setattr(BoundConvolution, "__call__", counted)
    monkeypatch.setattr(backend, "LiftedReplay", Noted)
    # what inductor makes of a graph is not looked at here
    monkeypatch.setattr(backend, "compile_fx", inductor)
    yield found
    torch._dynamo.reset()


def _compiled(module: Any, **options: Any) -> Any:
    return torch.compile(module, backend="tvm_conv3d", **options)


def test_values(made: Made) -> None:
    module = network()
    compiled = _compiled(module, fullgraph=True)
    # a few kernels that are not there yet are compiled by the call
    check(compiled, module)
    before = made.calls
    for seed in range(3):
        check(compiled, module, torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)))
    assert made.replays() == [True]
    assert made.calls - before == 3 * CONVOLUTIONS
    assert not ours.counters().torch


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_results_lie_as_torch_has_them(made: Made, around: Any) -> None:
    module = network()
    compiled = _compiled(module)
    for x in (X, X.to(memory_format=torch.channels_last_3d)):
        with around():
            result, wanted = compiled(x), module(x)
        assert result.stride() == wanted.stride()
        assert result.is_inference() == wanted.is_inference() and not result.requires_grad


def _in_place(module: Any) -> None:
    with torch.no_grad():
        module[0].conv1.weight.mul_(2)


def _past_the_counter(module: Any) -> None:
    module[0].conv1.weight.data.numpy()[:] *= 2


def _other_memory(module: Any) -> None:
    module[0].norm1.running_mean.data = module[0].norm1.running_mean + 1


def _other_parameter(module: Any) -> None:
    module[0].conv2.weight = nn.Parameter(module[0].conv2.weight.detach() * 2)


def _loaded(module: Any) -> None:
    module.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()})


CHANGES: list[Callable[[Any], None]] = [_in_place, _past_the_counter, _other_memory, _other_parameter, _loaded]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(made: Made, change: Callable[[Any], None]) -> None:
    module = network()
    compiled = _compiled(module)
    check(compiled, module)
    change(module)
    for _ in range(3):
        check(compiled, module)
    assert made.calls_of(compiled) == CONVOLUTIONS


def test_modules_of_one_class_share_a_graph(made: Made) -> None:
    class Network(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.conv(x))

    modules = [Network(seed) for seed in range(3)]
    compiled = [_compiled(module) for module in modules]
    for _ in range(3):
        for fast, module in zip(compiled, modules, strict=True):
            check(fast, module)
    assert [made.calls_of(fast) for fast in compiled] == [1, 1, 1]
    (function,) = made.functions
    assert len(function._bound) == len(modules)
    # what was made of weights goes with them
    del fast, module, compiled[1:], modules[1:]
    gc.collect()
    assert len(function._bound) == 1
    check(compiled[0], modules[0])


def test_weights_that_are_inputs_are_not_bound(made: Made) -> None:
    @torch.compile(backend="tvm_conv3d")
    def convolved(x: Any, weight: Any) -> Any:
        return torch.relu(nn.functional.conv3d(x, weight))

    for seed in range(2):
        weight = torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        wanted = torch.relu(nn.functional.conv3d(X.double(), weight.double()))
        assert float((convolved(X, weight).double() - wanted).norm() / wanted.norm()) < 1e-5
    assert made.replays() == [True] and made.calls == 0


def test_what_needs_gradients_goes_to_inductor(made: Made) -> None:
    module = network()
    _compiled(module)(X).sum().backward()
    assert module[0].conv1.weight.grad is not None
    assert made.replays() == [False]


def test_weights_without_gradients(made: Made) -> None:
    module = network().requires_grad_(False)
    compiled, given = _compiled(module), X.clone().requires_grad_()
    assert not compiled(X).requires_grad
    compiled(given).sum().backward()
    assert given.grad is not None
    assert made.replays() == [True, False]


def test_weights_of_inference_mode(made: Made) -> None:
    with torch.inference_mode():
        module = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()).eval()
    compiled = _compiled(module)
    check(compiled, module)
    assert made.replays() == [True] and made.calls_of(compiled) == 1


def test_symbolic_sizes_go_to_inductor(made: Made) -> None:
    module = network()
    compiled = _compiled(module, dynamic=True)
    check(compiled, module)
    assert made.replays() == [False]


def test_autocast_goes_to_inductor(made: Made) -> None:
    compiled = _compiled(network())
    with torch.inference_mode(), torch.autocast("cpu"):
        compiled(X)
    assert made.replays() == [False]


def test_autocast_within_goes_to_inductor(made: Made) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return torch.relu(self.conv(x))

    with torch.inference_mode():
        assert _compiled(Half().eval())(X).dtype == torch.bfloat16
    assert made.replays() == [False]


def test_statistics_that_are_updated_go_to_inductor(made: Made) -> None:
    module = network().train()
    before = copy.deepcopy(module[0].norm1.running_mean)
    with torch.no_grad():
        _compiled(module)(X)
    assert not torch.equal(module[0].norm1.running_mean, before)
    assert made.replays() == [False]


def test_options_are_inductors(made: Made) -> None:
    compiled = _compiled(network(), options={"config_patches": {"max_autotune": False}})
    with torch.inference_mode():
        compiled(X)
    assert made.replays() == [False]


@pytest.mark.parametrize(("edge", "replayed"), [(8, True), (40, False)])
def test_large_chains_of_pointwise_functions_go_to_inductor(made: Made, edge: int, replayed: bool) -> None:
    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 8, 3)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return y * (y.square() * 0.1 + 0.3)

    module = Chained().eval()
    check(_compiled(module), module, torch.randn(1, 1, edge, edge, edge))
    assert made.replays() == [replayed]
