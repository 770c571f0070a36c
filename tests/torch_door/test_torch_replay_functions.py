"""Functions of torch's that networks call between convolutions, in replays."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)
from torch.nn import functional  # noqa: E402

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check, reasons, replayed  # noqa: E402


def test_powers_and_repeated_slices_are_replayed() -> None:
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            y = self.conv(x).repeat_interleave(2, dim=3)
            return y / (1 + (y**2).mean(1, keepdim=True))

    module = Repeating().eval()
    fast = ours.accelerate(module, X)
    check(fast, module)
    assert replayed(fast) == 1 and reasons(fast) == ""


class Padding(nn.Module):
    """Causal, TensorFlow's "same" of stride 2, and pads that must stay: of ones, mirrored, cropping, or of channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=(0, 1, 1))
        self.last = nn.Conv3d(4, 4, 3, stride=2, bias=False)
        self.up = nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.kind = kind

    def forward(self, x: Any) -> Any:
        y = self.conv(functional.pad(x, (0, 0, 0, 0, 2, 0)))
        y = nn.ZeroPad3d((0, 1, 0, 1, 0, 1))(y)
        if self.kind == "stay":
            y = functional.pad(functional.pad(y, (1, 0), value=1.0), (0, 0, 0, 0, 1, 1), mode="reflect")
            y = functional.pad(y, (0, 0, -1, 2))
            y = functional.pad(y[:, :3], (0, 0, 0, 0, 0, 0, 1, 0))
        z = self.up(functional.pad(self.last(y), (1, 0)))
        return (z, y) if self.kind == "shared" else z


@pytest.mark.parametrize(("kind", "pads"), [("plain", 1), ("shared", 2), ("stay", 6)])
def test_convolutions_pad_with_zeros_by_themselves(kind: str, pads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Padding(kind).eval()
    fast = ours.accelerate(module, X)
    counted = []
    monkeypatch.setattr(
        functional, "pad", lambda *args, pad=functional.pad, **more: counted.append(1) or pad(*args, **more)
    )
    with torch.inference_mode():
        wanted = copy.deepcopy(module).double()(X.double())
        counted.clear()
        result = fast(X)
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert replayed(fast) == 1 and reasons(fast) == ""
    assert len(counted) == pads
