"""Accelerated networks replay their graphs, fused; what a graph can't hold goes layer by layer."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check, network, reasons, replayed  # noqa: E402


def test_a_network_is_fused() -> None:
    module = network()
    fast = ours.accelerate(module)
    check(fast, module)
    check(fast, module)
    (found,) = fast.report.replayed
    assert found.reason is None and found.inputs == "2x3x6x7x8"
    assert found.fused == (
        "0.conv1: convolution + batch norm + leaky_relu:0.01",
        "0.conv2: convolution",
        "0.norm2: norm (in place)",
        "0.shortcut: convolution + add + prelu",
        "2.conv1: convolution + batch norm + leaky_relu:0.01",
        "2.conv2: convolution",
        "2.norm2: norm (in place)",
        "2.shortcut: convolution + add + prelu",
    )
    assert "    2.conv2: convolution" in str(fast.report).splitlines()
    ours.reset_counters()
    check(fast, module)
    # six convolutions and two norms; the pool and the upsampling are too small to gain
    assert ours.counters() == ours.Counters(8, {})


def test_results_lie_in_memory_as_torchs_do() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    with torch.inference_mode():
        assert fast(X).is_contiguous()
        last = X.to(memory_format=torch.channels_last_3d)
        for _ in range(3):
            assert fast(last).stride() == module.to(memory_format=torch.channels_last_3d)(last).stride()


def test_inputs_may_lie_anywhere_in_their_memory() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    memory = torch.randn(X.numel() + 17)
    for offset in (0, 1, 2, 3, 17):
        check(fast, module, memory[offset : offset + X.numel()].view(X.shape))
    scan = torch.randn(2, 3, 12, 14, 16)
    for place in range(5):
        check(fast, module, scan[..., place : place + 6, 1:8, place : place + 8])
    # of a view of a scan the first call is by layers, the second recorded
    assert replayed(fast) == 2 and fast.report.by_layers == {}


class Counting(nn.Module):
    """Does what `what` says, each a thing that a graph can't hold."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.calls = 0
        self.kept: list[Any] = [None]
        self.seen = None
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.what == "looks at values" and y.sum() > 0:
            return -y
        if self.what == "counts":
            self.calls += 1
            return y * self.calls
        if self.what == "writes into its input":
            return self.conv(x.mul_(2))
        if self.what == "writes into a buffer":
            self.total += 1
            return y + self.total
        if self.what == "writes into a view":
            view = y[:, :2]
            y.relu_()
            return y.sum() + view
        if self.what == "writes by a view":
            y[:, :2].mul_(2)
            return functional.relu(y)
        if self.what == "sets elements by a mask":
            y[y > 0] = 1
            return functional.relu(y)
        if self.what == "sets elements of its input":
            x[:, 0] = 1
            return self.conv(x)
        if self.what == "sets elements that a view shows":
            view = y[:, :2]
            y[:, 0] = 1
            return self.conv(y[:, :3]) + view.sum()
        if self.what == "is random":
            return functional.dropout(y, 0.5, True)
        if self.what == "keeps what it saw":
            self.seen = y * 2
            self.kept[0] = y.relu_()
            return y + 1
        if self.what == "casts by autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.conv(y[:, :3]).float()
        return y


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("looks at values", "makes a Python value of a tensor"),
        ("counts", "changes what its parts hold: 'calls'"),
        ("writes into its input", "mul_ writes into an input, a parameter or a buffer"),
        ("writes into a buffer", "add_ writes into an input, a parameter or a buffer"),
        ("writes into a view", "writes into memory that other tensors share"),
        ("writes by a view", "writes into memory that other tensors share"),
        ("sets elements by a mask", "__setitem__ gives a shape that depends on values"),
        ("sets elements of its input", "__setitem__ writes into an input, a parameter or a buffer"),
        ("sets elements that a view shows", "writes into memory that other tensors share"),
        ("is random", "it draws random numbers"),
        ("casts by autocast", "autocast"),
    ],
)
def test_what_a_graph_cannot_hold_goes_layer_by_layer(what: str, reason: str) -> None:
    fast, plain = ours.accelerate(Counting(what).eval()), Counting(what).eval()
    plain.load_state_dict(fast.state_dict())
    with torch.inference_mode():
        for _ in range(3):
            torch.manual_seed(1)
            # each may write into its own
            one, other = X.clone(), X.clone()
            result = fast(one)
            torch.manual_seed(1)
            wanted = plain(other)
            if what != "is random":
                torch.testing.assert_close(result, wanted, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(one, other)
    assert replayed(fast) == 0 and reason in reasons(fast)


def _of_shifted_windows(y: Any) -> Any:
    """Numbers of regions, as SwinUNETR's masks are made of."""
    regions = torch.zeros(1, 1, *y.shape[2:])
    for number, rows in enumerate((slice(-3), slice(-3, -1), slice(-1, None))):
        regions[:, :, rows] = number
    return y + regions


def _of_operands(y: Any) -> Any:
    """By tensors, other types, integers, ellipses, steps, new axes, and lists of places."""
    before = y * 2
    y[:, 0] = y[:, 1]
    y[..., ::2] = torch.arange(4, dtype=torch.float64)
    y[None, 0, 2] = 1
    y[:, [3, 1]] = y[:, [1, 3]]
    y[0, torch.tensor([0, 2])] = 7
    return functional.relu(y) + before


def _by_methods(y: Any) -> Any:
    """By methods that write, one of them by a mask."""
    y **= 2
    y.masked_fill_(y > 1, 1).clamp_max_(0.9).add_(0.1).rsqrt_()
    return y + 1


@pytest.mark.parametrize("change", [_of_shifted_windows, _of_operands, _by_methods])
def test_elements_that_are_set(change: Any) -> None:
    class Setting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3, padding=1)
            self.last = nn.Conv3d(4, 4, 1)

        def forward(self, x: Any) -> Any:
            return self.last(change(self.conv(x)))

    module = Setting().eval()
    fast = ours.accelerate(module, X)
    for _ in range(3):
        check(fast, module)
    assert replayed(fast) == 1 and reasons(fast) == ""
    compiled = torch.compile(module, backend="tvm_conv3d")
    ours.reset_counters()
    check(compiled, module)
    assert ours.counters().ours == 2


def test_tensors_left_for_later_are_left_by_replays() -> None:
    fast, plain = ours.accelerate(Counting("keeps what it saw").eval()), Counting("keeps what it saw").eval()
    plain.load_state_dict(fast.state_dict())
    with torch.inference_mode():
        for factor in (1, 2, 3):
            torch.testing.assert_close(fast(X * factor), plain(X * factor), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fast.seen, plain.seen, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fast.kept[0], plain.kept[0], rtol=1e-4, atol=1e-4)
    assert replayed(fast) == 1


def test_hooks_are_called() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    shapes = []
    handle = fast[0].conv1.register_forward_hook(lambda part, given, result: shapes.append(result.shape))
    check(fast, module)
    check(fast, module)
    assert len(shapes) == 2 and "hooks on 0.conv1" in reasons(fast)
    handle.remove()
    check(fast, module)
    assert len(shapes) == 2 and fast.report.replayed[-1].reason is None


def test_gradients_go_layer_by_layer() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    fast(X).square().sum().backward()
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    module(X).square().sum().backward()
    for one, other in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=1e-3)
    assert "gradients are enabled" in reasons(fast)
    fast.requires_grad_(False)
    ours.reset_counters()
    fast(X)
    assert sum(fast.report.by_layers.values()) == 1


def test_training_goes_layer_by_layer_and_comes_back() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    fast.train()
    with torch.no_grad():
        fast(X)
    assert "training" in reasons(fast)
    fast.eval()
    check(fast, module)
    assert len(fast.report.replayed) == 1


def test_parts_in_training_mode() -> None:
    module, twin = network(), network()
    fast = ours.accelerate(module)
    for each in (fast, twin):
        each[0].norm1.train()
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(fast(X), twin(X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module[0].norm1.running_mean, twin[0].norm1.running_mean)
    assert replayed(fast) == 0


def test_autocast_goes_layer_by_layer() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fast(X).dtype == module(X).dtype
    assert "autocast" in reasons(fast)


def test_a_further_size_is_replayed_from_its_second_call_on() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    other = torch.randn(1, 3, 8, 8, 8)
    check(fast, module, other)
    assert replayed(fast) == 1
    check(fast, module, other)
    check(fast, module, other)
    assert replayed(fast) == 2


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3)

    def forward(self, x: Any, twice: bool = False, *, more: Any = None) -> Any:
        y = self.conv(x)
        y = y * 2 if twice else y
        y = y if more is None else y + more["bias"]
        return {"y": y, "list": [y.flatten(1), None, 3], "input": x, "view": y.view(-1)}


def test_arguments_and_results_of_any_structure() -> None:
    fast, plain = ours.accelerate(Structured().eval()), Structured().eval()
    plain.load_state_dict(fast.state_dict())
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((X,), {}),
        ((X, True), {}),
        ((X,), {"twice": True}),
        ((X,), {"more": {"bias": torch.ones(())}}),
    ]
    with torch.inference_mode():
        for _ in range(3):
            for args, kwargs in calls:
                result, wanted = fast(*args, **kwargs), plain(*args, **kwargs)
                assert list(result) == list(wanted) and result["list"][1:] == [None, 3]
                for name in ("y", "view"):
                    torch.testing.assert_close(result[name], wanted[name], rtol=1e-4, atol=1e-4)
                assert result["input"] is X
    assert replayed(fast) == len(calls)


def test_accelerated_parts_of_a_network() -> None:
    module = network()
    fast = copy.deepcopy(module)
    fast[0] = ours.accelerate(fast[0])
    check(ours.accelerate(fast, X), module)
    check(fast, module)
    check(fast, module)


def test_several_threads() -> None:
    module = network()
    fast = ours.accelerate(module)
    failures = []

    def work() -> None:
        try:
            for _ in range(3):
                check(fast, module)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_errors_are_torchs() -> None:
    fast = ours.accelerate(network(), X)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="to have 3 channels"):
        fast(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(TypeError):
        fast()


def test_compiled_by_torch() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    torch.compiler.reset()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    check(compiled, module)
    torch.compiler.reset()
