"""`torch.compile(model, backend="tvm_conv3d")`: which graphs Dynamo makes, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.torch import backend  # noqa: E402


class Joined(nn.Module):
    """Concatenates what it is given, as MONAI's BasicUNet does, and asks for types by TorchScript's function."""

    def __init__(self, asked: Any = torch.Tensor) -> None:
        super().__init__()
        self.asked = asked
        self.first = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.LeakyReLU(0.1, inplace=True))
        self.last = nn.Conv3d(7, 5, 3)

    def forward(self, x: Any, skipped: Any = None) -> Any:
        y = self.first(x)
        if skipped is not None and torch.jit.isinstance(skipped, self.asked):
            tensors = skipped if isinstance(skipped, list) else [skipped]
            return self.last(torch.cat([*tensors, y], 1))
        return y


@pytest.fixture(autouse=True)
def _traced_anew() -> None:
    torch._dynamo.reset()


def check(compiled: Any, module: nn.Module, *given: Any) -> Any:
    """Returns the compiled module's result, which is that of the module in float64."""
    with torch.inference_mode():
        found = compiled(*given)
        exact = module.double()(*(_double(each) for each in given))
        module.float()
    assert found.dtype == torch.float32
    assert float((found.double() - exact).norm() / exact.norm()) < 1e-5
    return found


def _double(value: Any) -> Any:
    return list(map(_double, value)) if isinstance(value, list) else value.double()


def test_asking_for_tensors_breaks_no_graph() -> None:
    module, x = Joined().eval(), torch.randn(2, 3, 6, 7, 8)
    compiled = torch.compile(module, backend="tvm_conv3d", fullgraph=True)
    check(compiled, module, x, x)
    # two convolutions and a norm
    assert ours.counters() == ours.Counters(3, {})
    # without a second tensor: the graph's other branch
    check(compiled, module, x)


def test_pads_of_no_width_are_dropped() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            return functional.pad(functional.pad(self.conv(x), [0] * 6, "replicate"), (0, 1)) + 1

    called: list[str] = []

    def look(graph_module: Any, inputs: Any) -> Any:
        called.extend(node.name for node in backend._rewritten(graph_module).graph.nodes if node.op == "call_function")
        return graph_module.forward

    module, x = Padded().eval(), torch.randn(2, 3, 6, 7, 8)
    check(torch.compile(module, backend=look), module, x)
    assert len([name for name in called if "pad" in name]) == 1
    check(torch.compile(module, backend="tvm_conv3d"), module, x)


def test_other_types_are_told_apart_as_before() -> None:
    x = torch.randn(2, 3, 6, 7, 8)
    for asked, joined in ((list[torch.Tensor], True), (list[int], False), ((torch.Tensor, int), False)):
        module = Joined(asked).eval()
        compiled = torch.compile(module, backend="tvm_conv3d")
        assert (check(compiled, module, x, [x]).shape[1] == 5) == joined


def test_what_looks_at_the_order_of_memory_is_torchs() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(x).as_strided((2, 4, 60), (240, 60, 1)).sum(-1)

    module, x = Strided().eval(), torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    check(torch.compile(module, backend="tvm_conv3d"), module, x)
