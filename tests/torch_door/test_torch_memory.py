"""What this package's part of a network takes in memory, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

import processes

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  (needs torch)

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
