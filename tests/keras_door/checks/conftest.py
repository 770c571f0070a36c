"""What all checks of one backend of Keras's begin with; `tests/keras_door/test_backends.py` runs them."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marks of Keras's own tests known."""
    for name in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{name}: Keras's")


@pytest.fixture(autouse=True)
def _counted_from_zero() -> None:
    # here: Keras takes its backend from the environment as it is imported
    from tvm_conv3d.keras import reset_counters

    reset_counters()
