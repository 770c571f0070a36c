"""What this package's part of a network takes in memory, and for how long."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

import processes

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.runtime import kept_weights, output_pool, packed_limits  # noqa: E402
from tvm_conv3d.torch.graph import ahead, replay, rewriting  # noqa: E402


def test_inference_does_not_load_torchs_compiler() -> None:
    printed = processes.run(
        """
import sys, torch
from tvm_conv3d.torch import accelerate
# of zeros only, as every sixteenth start of these weights gives, nothing is recorded
torch.manual_seed(1)
net = accelerate(torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3), torch.nn.ReLU()).eval())
with torch.inference_mode():
    for _ in range(2):
        net(torch.ones(1, 2, 5, 5, 5))
assert net.report.replayed
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    )
    assert printed.strip() == "[]"


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that torch's operators return."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


def test_results_are_compared_part_by_part() -> None:
    wanted = torch.randn(1, 4, 64, 128, 128)
    result = wanted * (1 + 1e-5)
    with Largest() as largest:
        assert replay.agrees([result], [wanted], []) is None
    assert 0 < largest.nbytes < wanted.nbytes
    views = [each.transpose(1, 4) for each in (result, wanted)]
    assert replay.agrees(views[:1], views[1:], []) is None
    # wherever the difference is
    result[..., -1] = torch.nan
    assert replay.agrees([result], [wanted], []) == "result 0 is finite elsewhere"
    result[..., -1] = wanted[..., -1] * 1.5
    assert "relative error of" in (replay.agrees([result], [wanted], []) or "")


def test_results_are_looked_at_part_by_part() -> None:
    wanted = torch.zeros(1, 64, 128, 128, 4).permute(0, 4, 1, 2, 3)
    with Largest() as largest:
        assert not replay.tells([wanted])
        wanted[0, -1, -1, -1, -1] = torch.inf
        assert not replay.tells([wanted])
        wanted[0, 0, 0, 0, 0] = 1.0
        assert replay.tells([wanted])
    assert 0 < largest.nbytes < wanted.nbytes / 4


LAYERS = 6


def chain() -> Any:
    """An accelerated network whose values are of one size, each read by the next layer alone."""
    layers = (torch.nn.Conv3d(8, 8, 3, padding=1) for _ in range(LAYERS))
    parts = [part for layer in layers for part in (layer, torch.nn.InstanceNorm3d(8), torch.nn.ReLU())]
    return ours.accelerate(torch.nn.Sequential(*parts).eval())


def test_values_die_behind_their_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    store = output_pool._Store()
    monkeypatch.setattr(output_pool, "_store", store)
    fast, x = chain(), torch.randn(1, 8, 32, 32, 32)
    with torch.inference_mode():
        for _ in range(3):
            fast(x)
    assert fast.report.replayed[0].reason is None
    # the input with its channels last, what a layer reads and what it writes, small sums beside them
    assert 2 * x.nbytes <= max(store._highest) < 4 * x.nbytes
    assert store.kept() < 4 * x.nbytes
    assert store._used == 0


def test_results_in_torchs_order_lie_where_volumes_lay(monkeypatch: pytest.MonkeyPatch) -> None:
    store = output_pool._Store()
    monkeypatch.setattr(output_pool, "_store", store)
    network, x = chain(), torch.randn(1, 8, 32, 32, 32)
    with torch.inference_mode():
        # where nothing was compiled before, calls are bound from the second on
        network(x)
        network(x)
        kept = store.kept()
        result = network(x)
        assert result.is_contiguous()
        assert store.kept() + result.nbytes == kept
        again = network(x)
        assert torch.equal(result, again)
        assert result.data_ptr() != again.data_ptr()
        place = result.data_ptr()
        del result
        assert network(x).data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edge", [4, 40])
def test_results_in_torchs_order_are_copies(edge: int, dtype: Any) -> None:
    values = torch.randn(2, 8, edge, edge, edge).to(dtype)
    last = values.contiguous(memory_format=torch.channels_last_3d)
    result = rewriting.laid_out(last, values.stride())
    assert result.stride() == values.stride()
    assert torch.equal(result, values)
    assert rewriting.laid_out(last, last.stride()) is last


def test_weights_are_packed_before_there_are_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [torch.nn.Conv3d(8, 8, 3, padding=1) for _ in range(LAYERS)]
    network = torch.nn.Sequential(*layers, torch.nn.BatchNorm3d(8))
    x = torch.randn(1, 8, 16, 16, 16)
    # few convolutions are compiled by their calls
    ours.accelerate(network.eval(), x)
    fast = ours.accelerate(network)
    store = kept_weights.Store()
    for module in (kept_weights, ahead):
        monkeypatch.setattr(module, "STORE", store)
    found = []
    compiled = replay.compiled

    def noted(graph: Any) -> Any:
        found.append((len(store), store.nbytes))
        return compiled(graph)

    monkeypatch.setattr(replay, "compiled", noted)
    with torch.inference_mode():
        wanted = network(x)
        for _ in range(2):
            torch.testing.assert_close(fast(x), wanted, rtol=1e-4, atol=1e-5)
    assert found[0] == (LAYERS, store.nbytes)
    assert store.nbytes > 0


@pytest.mark.parametrize("share", [0.0, 1e6])
def test_packed_weights_are_bounded_by_the_networks_time(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_limits, "SHARE", share)
    monkeypatch.setattr(packed_limits, "ENOUGH", 0)
    # whatever it costs
    monkeypatch.setattr(packed_limits, "RATE", math.inf)
    network = torch.nn.Sequential(*(torch.nn.Conv3d(128, 128, 3, padding=1, bias=False) for _ in range(2))).eval()
    x = torch.randn(1, 128, 6, 6, 6)
    store = kept_weights.Store()
    for module in (kept_weights, ahead):
        monkeypatch.setattr(module, "STORE", store)
    fast = ours.accelerate(network, x)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    assert fast.report.replayed[0].reason is None
    assert len(store) == 2
    plain = sum(layer.weight.nbytes for layer in network)
    # Winograd's, or those of the products of the definition and of tiles not much larger
    assert (store.nbytes > 2.5 * plain) == (share == 0.0)


def test_weights_that_would_be_forgotten_are_not_packed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = torch.nn.Conv3d(8, 8, 3).eval(), torch.randn(1, 8, 8, 8, 8)
    whole = torch.nn.Sequential(network).eval()
    packed: list[Any] = []
    monkeypatch.setattr(ahead, "pack_weights", lambda *given: packed.append(given))
    for most, count in ((0, 0), (1 << 30, 1)):
        monkeypatch.setattr(ahead, "STORE", kept_weights.Store(most))
        with torch.inference_mode():
            torch.testing.assert_close(ours.accelerate(whole)(x), network(x), rtol=1e-4, atol=1e-5)
        assert len(packed) == count


def test_a_recording_keeps_no_volumes() -> None:
    fast, x = chain(), torch.randn(1, 8, 32, 32, 32)
    with torch.inference_mode():
        fast(torch.randn(1, 8, 6, 6, 6))
        gc.collect()
        # cycles would hold them until the collector comes
        gc.disable()
        try:
            for _ in range(3):
                fast(x)
            volumes = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.nbytes >= x.nbytes]
        finally:
            gc.enable()
    assert len(fast.report.replayed) == 2
    assert [each is x for each in volumes] == [True]
