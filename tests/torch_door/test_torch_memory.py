"""What this package's part of a network takes in memory, and for how long."""

from __future__ import annotations

import processes


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
