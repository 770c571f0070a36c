"""Replayed networks whose convolutions are bound to their weights: the same values, none of other weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d  # noqa: E402
import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check, network  # noqa: E402
from tvm_conv3d.torch.operators.bound_convolution import BoundConvolution  # noqa: E402

#: Convolutions of the network.
CONVOLUTIONS = 6


class _Calls:
    """Calls of bound convolutions since somebody last asked."""

    def __init__(self) -> None:
        self._count = 0

    def note(self) -> None:
        self._count += 1

    def since(self) -> int:
        count, self._count = self._count, 0
        return count


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Calls]:
    found, call = _Calls(), BoundConvolution.__call__

    def noted(self: BoundConvolution, *operands: Any) -> Any:
        found.note()
        return call(self, *operands)

    monkeypatch.setattr(BoundConvolution, "__call__", noted)
    return found


def _calls_of(fast: Any, calls: _Calls, x: Any = X) -> int:
    calls.since()
    with torch.inference_mode():
        fast(x)
    return calls.since()


def _check_that_it_begins_anew(fast: Any, module: Any, calls: _Calls) -> None:
    """A call that finds something else is not bound to it; after some, calls are again."""
    calls.since()
    check(fast, module)
    assert calls.since() == 0
    for _ in range(8):
        check(fast, module)
    assert _calls_of(fast, calls) == CONVOLUTIONS


def test_values(calls: _Calls) -> None:
    module = network()
    fast = ours.accelerate(module, X)
    ours.reset_counters()
    calls.since()
    for seed in range(3):
        check(fast, module, torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)))
    assert calls.since() == 3 * CONVOLUTIONS
    assert not ours.counters().torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(calls: _Calls, dtype: Any) -> None:
    module = network().to(dtype)
    fast = ours.accelerate(module, X.to(dtype))
    wanted = copy.deepcopy(module).double()(X.to(dtype).double())
    with torch.inference_mode():
        result = fast(X.to(dtype))
    assert calls.since() >= CONVOLUTIONS
    bound = {torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert result.dtype == dtype and float((result.double() - wanted).norm() / wanted.norm()) < bound


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_inputs_of_any_order(calls: _Calls, memory_format: Any) -> None:
    module = network()
    fast = ours.accelerate(module)
    for x in (X, X * 2):
        check(fast, module, x.contiguous(memory_format=memory_format))
    calls.since()
    check(fast, module, (X - 1).contiguous(memory_format=memory_format))
    assert calls.since() == CONVOLUTIONS


def test_other_weights_end_it_and_it_begins_anew(calls: _Calls) -> None:
    module = network()
    fast = ours.accelerate(module, X)
    for change in range(3):
        with torch.no_grad():
            for each in (fast, module):
                each[2].conv2.weight[change] += 1
        _check_that_it_begins_anew(fast, module, calls)


def test_strides_of_weights_may_change_in_place(calls: _Calls) -> None:
    module = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1)).eval()
    x = torch.randn(1, 4, 5, 6, 7)
    fast = ours.accelerate(module, x)
    assert _calls_of(fast, calls, x) == 1
    for each in (fast, module):
        each[0].weight.data = each[0].weight.data.transpose(0, 1)
    check(fast, module, x)
    check(fast, module, x)


def test_values_that_are_not_finite(calls: _Calls) -> None:
    torch.manual_seed(0)
    # large enough for Winograd's algorithm, which spreads them over its tiles
    module = nn.Sequential(nn.Conv3d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 16, 3, padding=1)).eval()
    x = torch.randn(1, 16, 12, 20, 20)
    fast = ours.accelerate(module, x)
    spoilt = x.clone()
    spoilt[0, 3, 6, 10, 11], spoilt[0, 5, 2, 3, 4] = float("nan"), float("inf")
    with torch.inference_mode():
        for given in (spoilt, x, spoilt, x, x):
            result, wanted = fast(given), copy.deepcopy(module).double()(given.double())
            torch.testing.assert_close(result, wanted.float(), rtol=1e-3, atol=1e-4, equal_nan=True)
    assert calls.since() > 0


def test_several_threads() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    inputs = [torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.inference_mode():
        wanted = [copy.deepcopy(module).double()(x.double()) for x in inputs]
    errors: list[float] = []

    def run(number: int) -> None:
        with torch.inference_mode():
            for _ in range(10):
                result = fast(inputs[number]).double()
                errors.append(float((result - wanted[number]).norm() / wanted[number].norm()))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 40 and max(errors) < 1e-5


def test_another_number_of_threads(calls: _Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    fast = ours.accelerate(module, X)
    assert _calls_of(fast, calls) == CONVOLUTIONS
    monkeypatch.setenv("TVM_NUM_THREADS", str(tvm_conv3d.get_num_threads() + 1))
    _check_that_it_begins_anew(fast, module, calls)


def test_profilers_see_operators() -> None:
    fast = ours.accelerate(network(), X)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        fast(X)
    (found,) = [event for event in profile.key_averages() if event.key == "tvm_conv3d::fused_convolution"]
    assert found.count == CONVOLUTIONS


def test_packed_weights_that_are_forgotten_are_packed_anew(calls: _Calls) -> None:
    module = network()
    fast = ours.accelerate(module, X)
    assert _calls_of(fast, calls) == CONVOLUTIONS
    try:
        # but for those of the last call
        tvm_conv3d.set_kept_weights(0)
        check(fast, module)
        assert calls.since() == 0
    finally:
        tvm_conv3d.set_kept_weights(1 << 30)
    check(fast, module)


class _Standardized(nn.Module):
    """Computes its weights anew at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3, 3))
        self.last = nn.Conv3d(8, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        weight = self.weight / self.weight.std(dim=(1, 2, 3, 4), keepdim=True)
        return self.last(nn.functional.conv3d(x, weight, padding=1).relu())


def test_computed_weights_are_left_to_the_operator(calls: _Calls) -> None:
    torch.manual_seed(0)
    module = _Standardized().eval()
    fast = ours.accelerate(module, X)
    calls.since()
    check(fast, module)
    assert calls.since() == 1


class _Residual(nn.Module):
    """A sum with what was computed before, which somebody sees afterwards.

    `seen` says by whom: nobody, a convolution, a view that is a result, or the caller.
    """

    def __init__(self, seen: str = "", channels: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seen = seen
        self.first = nn.Conv3d(4, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        self.late = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        before = self.first(x)
        view = before[:, 1:] if self.seen == "view" else None
        y = self.second(self.second(before)) + before
        y = nn.functional.relu(y)
        if self.seen == "convolution":
            y = y + self.late(before)
        return (y, before, view) if self.seen in ("view", "result") else (y,)


#: Large enough for Winograd's algorithm, whose results may not be trusted.
LARGE = torch.randn(1, 4, 12, 20, 20, generator=torch.Generator().manual_seed(1))


def _assert_right(fast: Any, module: Any, x: Any) -> None:
    with torch.inference_mode():
        results, wanted = fast(x), copy.deepcopy(module).double()(x.double())
    for result, right in zip(results, wanted, strict=True):
        if result is not None:
            torch.testing.assert_close(result, right.float(), rtol=1e-3, atol=1e-4, equal_nan=True)


def _memory_of_sums(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each bound convolution with a residual operand wrote over it, from now on."""
    found, call = [], BoundConvolution.__call__

    def noted(self: BoundConvolution, x: Any, residual: Any = None) -> Any:
        result = call(self, x, residual)
        if residual is not None:
            found.append(result.data_ptr() == residual.data_ptr())
        return result

    monkeypatch.setattr(BoundConvolution, "__call__", noted)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_written_over_what_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    module = _Residual().eval().to(dtype)
    fast = ours.accelerate(module, LARGE.to(dtype))
    found = _memory_of_sums(monkeypatch)
    with torch.inference_mode():
        for number in range(3):
            (result,), (wanted,) = (
                fast(number + LARGE.to(dtype)),
                copy.deepcopy(module).double()(number + LARGE.double()),
            )
            bound = 4e-2 if dtype == torch.bfloat16 else 1e-5
            assert float((result.double() - wanted).norm() / wanted.norm()) < bound
    assert found and all(found)


@pytest.mark.parametrize("seen", ["convolution", "view", "result"])
def test_what_somebody_reads_later_stays(monkeypatch: pytest.MonkeyPatch, seen: str) -> None:
    module = _Residual(seen).eval()
    fast = ours.accelerate(module, LARGE)
    found = _memory_of_sums(monkeypatch)
    for number in range(3):
        _assert_right(fast, module, number + LARGE)
    assert len(found) >= 3 and not found[0] and sum(found) == (3 if seen == "convolution" else 0)


def test_a_first_call_takes_no_more_memory_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _Residual().eval()
    fast = ours.accelerate(module, LARGE)
    # machine code is at hand then, that of what compiles fast at first, too
    for _ in range(3):
        _assert_right(fast, module, LARGE)
    found = _memory_of_sums(monkeypatch)
    ours.accelerate(module, LARGE)
    assert found == [True]


def test_what_a_first_call_compiles_is_bound_later(calls: _Calls) -> None:
    # two problems of one layer: the second is computed by a plan that compiles fast at first
    module = _Residual(channels=24).eval()
    fast = ours.accelerate(module, LARGE)
    for _ in range(4):
        _calls_of(fast, calls, LARGE)
    assert _calls_of(fast, calls, LARGE) == 3


def test_a_single_channel_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _Residual(channels=1).eval()
    fast = ours.accelerate(module, LARGE)
    found = _memory_of_sums(monkeypatch)
    _assert_right(fast, module, LARGE - 1)
    assert found == [False]


def test_residual_operands_that_are_lost_are_computed_anew() -> None:
    module = _Residual().eval()
    fast = ours.accelerate(module, LARGE)
    spoilt = LARGE.clone()
    spoilt[0, 3, 6, 10, 11], spoilt[0, 2, 2, 3, 4] = float("nan"), float("inf")
    for given in (spoilt, LARGE, LARGE, spoilt, spoilt, LARGE):
        _assert_right(fast, module, given)
