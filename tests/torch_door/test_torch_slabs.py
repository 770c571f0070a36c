"""Recordings compute large convolutions by torch's own code in slabs, which need a part of the memory."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  (needs torch)

from tvm_conv3d.torch.graph import recording, slabs  # noqa: E402


class Convolved(TorchDispatchMode):
    """Notes the bytes of what torch's convolutions read, whichever of its operators they are."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: list[int] = []
        self.backends: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "conv" in func.__name__:
            self.nbytes.append(args[0].nbytes)
            self.backends.append(torch._C._select_conv_backend(*args))
        return func(*args, **(kwargs or {}))


def recorded(module: Any, x: Any) -> tuple[Any, list[int]]:
    """A recording's result, and what its convolutions read."""
    with torch.no_grad(), Convolved() as convolved:
        found = recording.record(module, lambda: module(x), [x])
    assert found.reason is None
    return found.result, convolved.nbytes


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 1},
        {"padding": "same"},
        {"padding": "same", "kernel_size": (2, 4, 3)},
        {"padding": (2, 0, 1), "dilation": (2, 1, 3), "bias": False},
        {"stride": (2, 1, 3), "padding": (1, 2, 0)},
        {"stride": 3, "kernel_size": 2, "groups": 2},
        {"kernel_size": (1, 3, 1)},
        {"kernel_size": (3, 1, 1), "padding": (4, 0, 0)},
    ],
)
@pytest.mark.parametrize("nbytes", [1, 10_000])
def test_slabs_are_the_whole(arguments: dict[str, Any], nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_BYTES", nbytes)
    monkeypatch.setattr(slabs, "_UNFOLDED", 0)
    module, x = torch.nn.Conv3d(4, 6, **{"kernel_size": 3, **arguments}).eval(), torch.randn(2, 4, 13, 8, 9)
    result, _ = recorded(module, x)
    with torch.inference_mode():
        exact = module.double()(x.double())
    assert result.is_contiguous() and result.dtype == x.dtype
    assert result.shape == exact.shape
    assert float((result.double() - exact).norm() / exact.norm()) < 1e-6


def test_convolutions_of_recordings_read_a_slab_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = torch.nn.Conv3d(4, 4, 3, padding=1).eval(), torch.randn(1, 4, 64, 16, 16)
    assert recorded(module, x)[1] == [x.nbytes]
    monkeypatch.setattr(slabs, "_BYTES", x.nbytes // 4)
    monkeypatch.setattr(slabs, "_UNFOLDED", 0)
    _, read = recorded(module, x)
    assert len(read) == 8 and max(read) < x.nbytes / 6


def test_slabs_are_large_enough_for_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_BYTES", 1 << 16)
    for depth, stride, padding in ((81, 1, 1), (82, 2, 0), (83, 1, 0), (23, 1, 1)):
        module = torch.nn.Conv3d(16, 2, 3, padding=padding, stride=stride).eval()
        x = torch.randn(1, 16, depth, 64, 3)
        with torch.no_grad(), Convolved() as convolved:
            recording.record(module, lambda: module(x), [x])  # noqa: B023
        whole = torch._C._select_conv_backend(
            x, module.weight, None, [stride] * 3, [padding] * 3, [1] * 3, False, [0] * 3, 1
        )
        assert set(convolved.backends) == {whole}, (depth, stride, padding)
        # of 1 x 16 x planes x 64 more than 20480
        assert len(convolved.backends) == (1 if depth == 23 else 4)


def test_volumes_in_channels_last_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN reads them as they lie
    monkeypatch.setattr(slabs, "_BYTES", 1)
    module, x = torch.nn.Conv3d(4, 4, 3).eval(), torch.randn(1, 4, 6, 7, 8).to(memory_format=torch.channels_last_3d)
    result, read = recorded(module, x)
    assert read == [x.nbytes] and result.stride() == module(x).stride()


def test_errors_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_BYTES", 1)
    module = torch.nn.Conv3d(4, 4, 3).eval()
    for shape, message in (((1, 3, 6, 7, 8), "to have 4 channels"), ((1, 4, 2, 7, 8), "Kernel size can't be greater")):
        with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
            recording.record(module, lambda: module(torch.ones(shape)), [])  # noqa: B023
