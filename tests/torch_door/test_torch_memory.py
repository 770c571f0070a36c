"""What this package's part of a network takes in memory, and for how long."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import processes

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.runtime import output_pool  # noqa: E402
from tvm_conv3d.torch.graph import replay  # noqa: E402


def test_inference_does_not_load_torchs_compiler() -> None:
    printed = processes.run(
        """
import sys, torch
from tvm_conv3d.torch import accelerate
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
