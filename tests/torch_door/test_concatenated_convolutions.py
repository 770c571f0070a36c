"""Convolutions of concatenations: sums of convolutions of the parts, where that is faster and as exact."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

from tvm_conv3d.torch import accelerate  # noqa: E402

PART, WHOLE = "convolution of a part of its channels", ": convolution +"


def rel_error(result: Any, wanted: Any) -> float:
    return float((result - wanted).norm() / wanted.norm())


class Joined(nn.Module):
    """Activations of a convolution of a concatenation."""

    def __init__(self, channels: tuple[int, ...], filters: int, norm: Any = nn.Identity, **arguments: Any) -> None:
        super().__init__()
        arguments = {"kernel_size": 3, "padding": 1, **arguments}
        self.conv = nn.Conv3d(sum(channels), filters, **arguments)
        self.norm = norm(filters)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        if isinstance(self.norm, nn.BatchNorm3d):
            nn.init.uniform_(self.norm.running_var, 0.5, 2)
            nn.init.normal_(self.norm.running_mean)
        self.eval()

    def forward(self, *parts: Any) -> Any:
        return nn.functional.leaky_relu(self.norm(self.conv(torch.cat(parts, 1))), 0.1)


def inputs(channels: tuple[int, ...], size: tuple[int, int, int] = (16, 32, 64), batch: int = 1) -> list[Any]:
    return [torch.randn(batch, count, *size) for count in channels]


def fused(net: nn.Module, parts: list[Any], bound: float = 1e-5) -> str:
    """What the calls were made of, after holding their result against the exact one."""
    ours = accelerate(net)
    with torch.inference_mode():
        for _ in range(3):
            result = ours(*parts)
    kept = parts[0].dtype
    with torch.no_grad():
        wanted = net.double()(*[part.double() for part in parts])
    net.to(kept)
    assert rel_error(result, wanted) < bound
    return "\n".join(ours.report.replayed[0].fused)


@pytest.mark.parametrize(
    ("channels", "norm", "arguments"),
    [
        ((32, 32), nn.InstanceNorm3d, {}),
        ((17, 64), nn.BatchNorm3d, {"bias": False}),
        ((32, 16, 64), nn.BatchNorm3d, {"stride": 2}),
        ((32, 32), nn.Identity, {"kernel_size": 1, "padding": 0}),
        ((48, 16), nn.Identity, {"padding": "same", "dilation": 2, "kernel_size": (3, 1, 3)}),
    ],
)
def test_parts_are_read_one_by_one(channels: tuple[int, ...], norm: Any, arguments: dict[str, Any]) -> None:
    told = fused(Joined(channels, 24, norm, **arguments), inputs(channels))
    assert told.count(PART) == len(channels)


def test_the_same_tensor_twice() -> None:
    net, (x,) = Joined((32, 32), 16), inputs((32,))
    ours = accelerate(net)
    with torch.inference_mode():
        results = [ours(x, x) for _ in range(3)]
        wanted = net.double()(x.double(), x.double())
    assert all(rel_error(result, wanted) < 1e-5 for result in results)


def test_changed_weights_are_seen() -> None:
    net, parts = Joined((32, 32), 16, nn.BatchNorm3d), inputs((32, 32))
    ours = accelerate(net)
    with torch.inference_mode():
        ours(*parts)
        ours(*parts)
        net.conv.weight[:, 40] += 1
        net.norm.running_mean += 1
        results = [ours(*parts) for _ in range(2)]
        wanted = net.double()(*[part.double() for part in parts])
    assert all(rel_error(result, wanted) < 1e-5 for result in results)


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_not_finite_arrives(number: int) -> None:
    net, parts = Joined((32, 32), 16), inputs((32, 32))
    parts[number][0, 3, 10, 11, 12] = torch.nan
    parts[number][0, 3, 5, 25, 50] = torch.inf
    ours = accelerate(net)
    with torch.inference_mode():
        ours(*parts)
        result, wanted = ours(*parts), net(*parts)
    assert torch.equal(result.isfinite(), wanted.isfinite())
    assert torch.equal(result.isnan(), wanted.isnan())
    assert (~result.isfinite()).any()


@pytest.mark.parametrize(
    ("channels", "filters", "size", "dtype", "groups"),
    [
        ((32, 32), 16, (16, 32, 64), torch.bfloat16, 1),
        ((60, 4), 16, (16, 32, 64), torch.float32, 1),
        ((32, 32), 16, (8, 12, 12), torch.float32, 1),
        ((128, 128), 128, (12, 16, 16), torch.float32, 1),
        ((32, 32), 80, (16, 32, 64), torch.float32, 1),
        ((32, 32), 16, (16, 32, 64), torch.float32, 2),
    ],
    ids=["half", "few channels", "small", "much weight", "many filters", "groups"],
)
def test_where_the_whole_is_read(
    channels: tuple[int, ...], filters: int, size: tuple[int, int, int], dtype: Any, groups: int
) -> None:
    net = Joined(channels, filters, groups=groups).to(dtype)
    parts = [part.to(dtype) for part in inputs(channels, size)]
    told = fused(net, parts, 1e-5 if dtype is torch.float32 else 1e-2)
    assert WHOLE in told and PART not in told


def test_a_concatenation_that_something_else_reads() -> None:
    class Twice(Joined):
        def forward(self, *parts: Any) -> Any:
            whole = torch.cat(parts, 1)
            return torch.relu(self.conv(whole)), whole.mean()

    net, parts = Twice((32, 32), 16), inputs((32, 32))
    ours = accelerate(net)
    with torch.inference_mode():
        ours(*parts)
        (result, mean), (wanted, wanted_mean) = ours(*parts), net(*parts)
    assert rel_error(result, wanted) < 1e-5 and rel_error(mean, wanted_mean) < 1e-5
    assert PART not in "\n".join(ours.report.replayed[0].fused)


def test_the_backend_of_torch_compile() -> None:
    net, parts = Joined((32, 32), 16, nn.BatchNorm3d), inputs((32, 32))
    compiled = torch.compile(net, backend="tvm_conv3d")
    with torch.inference_mode():
        result, wanted = compiled(*parts), net(*parts)
    assert rel_error(result, wanted) < 1e-5
