"""Networks of MONAI as their users run them, by `accelerate`: numbers, sizes, states, copies, gradients.

The judge is the same network in float64 by torch's own code.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed beside torch")

from monai.data import MetaTensor  # noqa: E402  (needs torch)
from monai.inferers import sliding_window_inference  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402

#: Relative errors (2-norm) of outputs in float32, and in float64 of gradients and what training makes of outputs.
SINGLE, DOUBLE = 1e-5, 1e-9


class Client(NamedTuple):
    """A network, and two shapes of inputs that it takes."""

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def dynunet(**more: Any) -> Any:
    strides = (1, 2, 2)
    size = {"kernel_size": (3,) * 3, "strides": strides, "upsample_kernel_size": strides[1:], "filters": (4, 8, 8)}
    return nets.DynUNet(spatial_dims=3, in_channels=1, out_channels=2, **size, **more)


def unet(channels: tuple[int, ...], **more: Any) -> Any:
    return nets.UNet(3, 1, 2, channels=channels, strides=(2,) * (len(channels) - 1), **more)


CUBES = ((1, 1, 16, 16, 16), (2, 1, 24, 16, 16))
CLIENTS = {
    "UNet": Client(lambda: unet((4, 8), num_res_units=2, norm="batch"), CUBES),
    "UNet, instance norms": Client(lambda: unet((4, 8, 16)), CUBES),
    "BasicUNet": Client(
        lambda: nets.BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4)), ((1, 1, 32, 32, 32), (1, 1, 32, 48, 32))
    ),
    "DynUNet": Client(dynunet, CUBES),
    "DynUNet, deep supervision": Client(lambda: dynunet(deep_supervision=True, deep_supr_num=1), CUBES),
    "DynUNet, residual": Client(lambda: dynunet(res_block=True, trans_bias=True), CUBES),
    "SegResNet": Client(lambda: nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 2), blocks_up=(1,)), CUBES),
    "UNETR": Client(
        lambda: nets.UNETR(
            1, 2, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2, conv_block=False
        ),
        ((1, 1, 32, 32, 32), (2, 1, 32, 32, 32)),
    ),
    "SwinUNETR": Client(
        lambda: nets.SwinUNETR(1, 2, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 2), feature_size=12, window_size=4),
        ((1, 1, 64, 32, 32), (2, 1, 64, 32, 32)),
    ),
    "VNet": Client(lambda: nets.VNet(), ((2, 1, 16, 16, 16), (1, 1, 16, 16, 16))),
    "AttentionUnet": Client(lambda: nets.AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)), CUBES),
    "DenseNet": Client(
        lambda: nets.DenseNet121(3, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2)),
        ((2, 1, 32, 32, 32), (1, 1, 40, 32, 32)),
    ),
    "resnet10": Client(
        lambda: nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.125),
        ((2, 1, 32, 32, 32), (1, 1, 40, 32, 32)),
    ),
}


#: Whose states, copies and gradients are looked at every time; the others' by deep tests.
SAMPLE = ("UNet", "DynUNet, deep supervision", "SegResNet", "AttentionUnet", "DenseNet")


@pytest.fixture(params=[name if name in SAMPLE else pytest.param(name, marks=pytest.mark.deep) for name in CLIENTS])
def client(request: pytest.FixtureRequest) -> Client:
    return CLIENTS[request.param]


def network(client: Client) -> Any:
    """In eval mode, batch norms as after training; nothing is left to chance in training."""
    if client in (CLIENTS["UNETR"], CLIENTS["SwinUNETR"]):
        pytest.importorskip("einops", reason="einops is not installed beside torch")
    torch.manual_seed(0)
    module = client.make()
    for part in module.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.p = 0.0
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(part.running_mean, 0, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def relative(results: Any, wanted: Any) -> float:
    """The error of one tensor or of many together."""
    both = [found if isinstance(found, (list, tuple)) else [found] for found in (results, wanted)]
    pairs = list(zip(*both, strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    off, size = (
        torch.cat([part.detach().double().flatten() for part in parts]).norm()
        for parts in ([one - other for one, other in pairs], [other for _, other in pairs])
    )
    return float(off / size)


# these have many layers to compile
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.deep if name in ("BasicUNet", "UNETR", "SwinUNETR", "VNet") else ())
        for name in CLIENTS
    ],
)
def test_numbers(name: str) -> None:
    client = CLIENTS[name]
    module = network(client)
    wide, fast = copy.deepcopy(module).double(), ours.accelerate(module)
    ours.reset_counters()
    first, second = (torch.randn(shape) for shape in client.shapes)
    for x, without_gradients in ((first, torch.inference_mode), (second, torch.inference_mode), (first, torch.no_grad)):
        with without_gradients():
            result = fast(x)
            assert relative(result, wide(x.double())) < SINGLE
        assert result.dtype == torch.float32 and not result.requires_grad
    assert ours.counters().ours and not ours.counters().torch


def test_the_state_is_the_networks(client: Client) -> None:
    module = network(client)
    fast, other = ours.accelerate(module), network(client)
    x = torch.randn(client.shapes[0])
    before, after = module.state_dict(), fast.state_dict()
    assert list(before) == list(after)
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in before)
    with torch.no_grad():
        fast(x)
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.25)
        # a checkpoint of torch's own network
        fast.load_state_dict(other.state_dict())
        assert relative(fast(x), copy.deepcopy(other).double()(x.double())) < SINGLE
        other.load_state_dict(fast.state_dict())
        assert relative(module(x), fast(x)) < SINGLE


def saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin", [copy.deepcopy, saved])
def test_copies(client: Client, twin: Callable[[Any], Any]) -> None:
    fast = ours.accelerate(network(client))
    x = torch.randn(client.shapes[0])
    with torch.no_grad():
        wanted = fast(x)
        other = twin(fast)
        assert relative(other(x), wanted) < SINGLE
        for parameter in other.parameters():
            parameter.zero_()
        assert relative(fast(x), wanted) < SINGLE
        assert relative(other(x), wanted) > 0.1


def test_training(client: Client) -> None:
    # in float32 norms of few numbers turn a rounding into another gradient
    wide = network(client).double().train()
    fast = ours.accelerate(copy.deepcopy(wide))
    x = torch.randn(client.shapes[0], dtype=torch.float64)
    found = []
    for each in (fast, wide):
        given = x.clone().requires_grad_()
        parameters = list(each.parameters())
        gradients = torch.autograd.grad(each(given).square().mean(), [given, *parameters], allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients[1:], strict=True):
                if gradient is not None:
                    parameter.sub_(0.01 * gradient)
        found.append([gradient for gradient in gradients if gradient is not None])
    assert len(found[0]) > 5 and relative(*found) < DOUBLE
    # statistics and weights have changed
    with torch.inference_mode():
        assert relative(fast.eval()(x), wide.eval()(x)) < DOUBLE


@pytest.mark.parametrize("name", ["UNet", "DynUNet"])
@pytest.mark.parametrize(("meta", "batch"), [(False, 1), (False, 2), (True, 2)])
def test_sliding_windows(name: str, meta: bool, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network(CLIENTS[name])
    wide, fast = copy.deepcopy(module).double(), ours.accelerate(module)
    own, calls = type(fast).forward, []
    monkeypatch.setattr(type(fast), "forward", lambda self, x: (calls.append(self), own(self, x))[1])
    x = torch.randn(1, 1, 24, 20, 16)
    windows = {"roi_size": (16, 16, 16), "sw_batch_size": batch, "overlap": 0.25, "mode": "gaussian"}
    with torch.inference_mode():
        wanted = sliding_window_inference(x.double(), predictor=wide, **windows)
        given = MetaTensor(x, meta={"scan": "head"}) if meta else x
        result = sliding_window_inference(given, predictor=fast, **windows)
    assert isinstance(result, MetaTensor) == meta
    assert not meta or result.meta["scan"] == "head"
    assert relative(torch.as_tensor(result.numpy()), wanted) < SINGLE
    # all but the first are replayed; one by one they are views, each elsewhere in the scan's memory
    assert calls.count(wide) == 4 // batch and calls.count(fast) == 1
