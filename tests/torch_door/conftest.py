"""What all tests of PyTorch's modules begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _counted_from_zero() -> Iterator[None]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tvm_conv3d.torch import reset_counters

    torch.manual_seed(0)
    reset_counters()
    yield
    reset_counters()
