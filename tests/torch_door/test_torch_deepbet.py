"""The pretrained networks of deepbet, as its wheel has them: traces of residual U-Nets, which find the brain in a head.

The judge is the same trace in float64 by torch's own code.
"""

from __future__ import annotations

import copy
import warnings
from importlib import metadata
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_replays import reasons, replayed  # noqa: E402

#: Positions along each axis of what deepbet gives the first of its networks; the second gets twice as many.
SIZE = 128


@pytest.fixture(params=["bbox_model.pt", pytest.param("model.pt", marks=pytest.mark.deep)])
def network(request: pytest.FixtureRequest) -> Any:
    try:
        # deepbet itself needs much that its networks do not
        place = metadata.distribution("deepbet").locate_file(f"data/models/{request.param}")
    except metadata.PackageNotFoundError:
        pytest.skip("deepbet is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(place), map_location="cpu")


def head() -> Any:
    """Ellipsoids of skull and brain with noise, standardised as deepbet does it."""
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 3, indexing="ij")
    radius = ((z / 0.75) ** 2 + (y / 0.9) ** 2 + (x / 0.8) ** 2).sqrt()
    values = (radius < 0.7) * 0.8 + ((radius > 0.8) & (radius < 0.95)) * 0.4 + 0.05 * torch.rand(SIZE, SIZE, SIZE)
    return (0.226 * (values - values.mean()) / values.std() + 0.449)[None, None]


def test_a_head(network: Any) -> None:
    x = head()
    fast = ours.accelerate(network, x)
    with torch.inference_mode():
        result, wanted = fast(x), copy.deepcopy(network).double()(x.double())
    assert replayed(fast) == 1, reasons(fast)
    assert len(fast.report.replayed[0].fused) == 69
    assert result.shape == (1, 2, SIZE, SIZE, SIZE)
    assert float((result - wanted).norm() / wanted.norm()) < 1e-5
    # some of the head is brain, and some is none
    brain = wanted[0, 1] > 0.5
    assert 0.01 < float(brain.double().mean()) < 0.9
    assert float(((result[0, 1] > 0.5) != brain).double().mean()) < 1e-5
