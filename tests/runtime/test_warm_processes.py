"""A process that finds its machine code on disk imports no TVM, whose compiler takes a second and 200 MB."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from processes import run
from tvm_conv3d.support.folders import CACHE_VARIABLE

#: Says whether TVM is there, and what was computed.
_TELL = """
import sys
print("tvm" in sys.modules, *results)
"""

#: Results by numbers that are whole, so that any order of sums gives the same.
PROGRAMS = {
    "layer": """
import numpy as np
from tvm_conv3d import Conv3D
layer = Conv3D(4, 3, padding="same", activation="relu", kernel_initializer="ones")
results = [float(layer(np.full((1, n, 8, 9, 5), 2, "float32")).sum()) for n in (6, 7)]
""",
    "functional": """
import numpy as np
from tvm_conv3d import conv3d, conv3d_transpose
x, w = np.ones((2, 5, 6, 7, 8), "float32"), np.ones((2, 3, 3, 8, 16), "float32")
results = [float(conv3d(x, w).sum()), float(conv3d_transpose(x, np.ones((3, 3, 3, 4, 8), "float32"), strides=2).sum())]
""",
    "gradients": """
import numpy as np
from tvm_conv3d import conv3d_data_gradient, conv3d_weight_gradient
x, g = np.ones((1, 5, 6, 7, 8), "float32"), np.ones((1, 3, 4, 5, 16), "float32")
w = np.ones((3, 3, 3, 8, 16), "float32")
results = [float(conv3d_data_gradient(g, w, (5, 6, 7)).sum())]
results += [float(each.sum()) for each in [conv3d_weight_gradient(x, g, (3, 3, 3))]]
""",
    "a target of the user's": """
import numpy as np
from tvm_conv3d import Conv3D
layer = Conv3D(4, 3, kernel_initializer="ones", target={"kind": "llvm", "num-cores": 1})
results = [float(layer(np.ones((1, 6, 8, 9, 5), "float32")).sum())]
""",
    "accelerated network": """
import torch
from torch import nn
from tvm_conv3d.torch import accelerate
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU())
        self.deep = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.last = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1), nn.MaxPool3d(2), nn.Conv3d(8, 2, 1))
    def forward(self, x):
        x = self.down(x)
        return self.last(torch.cat([x, self.up(self.deep(x))], 1))
torch.manual_seed(0)
net = accelerate(Net().eval())
with torch.no_grad():
    results = [net(torch.ones(1, 1, 16, 16, 16)).shape == (1, 2, 8, 8, 8)]
""",
    "training step of a module": """
import torch
from tvm_conv3d.torch import Conv3d
layer = Conv3d(8, 16, 3)
x = torch.ones(1, 8, 6, 7, 8, requires_grad=True)
layer(x).sum().backward()
results = [float(layer.weight.grad.sum()), tuple(x.grad.shape) == tuple(x.shape)]
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_second_process_imports_no_tvm(program: str, tmp_path: Path) -> None:
    if "import torch" in PROGRAMS[program] and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    cold, warm = (run(PROGRAMS[program] + _TELL, **{CACHE_VARIABLE: str(tmp_path)}).split() for _ in range(2))
    assert cold[0] == "True"
    assert warm == ["False", *cold[1:]]
