"""Keras's own tests of the layer, which ship in its wheel, with our class in its place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from keras.src import layers

from tvm_conv3d.keras import Conv3D, counters, reset_counters

# before the module is imported: it takes its parameters' classes from there
layers.Conv3D = Conv3D
conv_test = pytest.importorskip("keras.src.layers.convolutional.conv_test", reason="this wheel has no tests")

#: Tests that compute nothing by the layer.
SYMBOLIC = ("bad_init_args", "symbolic", "constraints", "raises_exception", "lora_weight_name", "lora_rank_argument")


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    reset_counters()
    yield
    name = request.node.name
    if ("conv3d" in name) and not any(each in name for each in SYMBOLIC):
        assert counters().ours > 0
        assert counters().keras == {}


class TestBasics(conv_test.ConvBasicTest):
    """Made, built, called, trained, saved and loaded."""


class TestNumbers(conv_test.ConvCorrectnessTest):
    """Against Keras's loops in NumPy."""
