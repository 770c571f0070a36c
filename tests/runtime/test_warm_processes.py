"""A process that finds its machine code on disk imports no TVM, whose compiler takes a second and 200 MB."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from processes import run
from tvm_conv3d.engine import cache
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
    "data that are not finite, and not contiguous": """
import numpy as np
from tvm_conv3d import Conv3D
layer = Conv3D(32, 3, padding="same", kernel_initializer="random_normal")
x = np.ones((32, 24, 24, 24, 1), "float64").T
x[0, 3, 4, 5, 6] = np.inf
results = [int(np.isfinite(layer(x)).sum()) for _ in range(3)]
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
    "layer of Keras": """
import os
os.environ["KERAS_BACKEND"] = "torch"
import numpy as np
from tvm_conv3d.keras import Conv3D
layer = Conv3D(8, 3, activation="relu", kernel_initializer="ones")
results = [float(layer(np.ones((1, 6, 7, 8, 4), "float32")).detach().sum())]
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
    for word, packages in (("torch", ["torch"]), ("keras", ["keras", "torch"])):
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if word in PROGRAMS[program] and missing:
            pytest.skip(f"{missing[0]} is not installed")
    cold, warm = (run(PROGRAMS[program] + _TELL, **{CACHE_VARIABLE: str(tmp_path)}).split() for _ in range(2))
    # a network's code is compiled by processes of their own, where there are several CPUs
    assert cold[0] == "True" or program == "accelerated network"
    assert warm == ["False", *cold[1:]]


def test_a_pool_that_does_not_load_is_compiled_anew(tmp_path: Path) -> None:
    program = PROGRAMS["a target of the user's"] + _TELL
    cold = run(program, **{CACHE_VARIABLE: str(tmp_path)}).split()
    forged = []
    for file in (tmp_path / "modules").glob("*/meta.json"):
        meta = json.loads(file.read_text())
        if meta["about"].get("name", "").endswith(".ll"):
            forged.append(meta["about"]["name"])
            file.with_name("module.o").write_bytes(b"not an object")
            file.write_text(json.dumps({**meta, "sha256": cache._digest(b"not an object", meta["code"])}))
    assert sorted(forged) == ["hook.ll", "pool.ll"]
    assert run(program, **{CACHE_VARIABLE: str(tmp_path)}).split() == cold
    assert run(program, **{CACHE_VARIABLE: str(tmp_path)}).split() == ["False", *cold[1:]]
