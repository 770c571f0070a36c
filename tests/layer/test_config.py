"""Configs and stored weights: out, through JSON, and back, without Keras."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import activations, constraints, initializers, regularizers

KEYS = {
    "name",
    "trainable",
    "dtype",
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "dilation_rate",
    "groups",
    "activation",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
}
FULL = {
    "filters": 4,
    "kernel_size": (3, 2, 1),
    "strides": (1, 2, 1),
    "padding": "same",
    "data_format": "channels_first",
    "groups": 2,
    "activation": "swish",
    "use_bias": False,
    "kernel_initializer": initializers.HeNormal(seed=3),
    "bias_initializer": initializers.Constant(2.0),
    "kernel_regularizer": regularizers.L1(0.1),
    "bias_regularizer": regularizers.L1L2(0.1, 0.2),
    "activity_regularizer": regularizers.L2(0.3),
    "kernel_constraint": constraints.MaxNorm(3, axis=[0, 1, 2, 3]),
    "bias_constraint": "non_neg",
    "trainable": False,
    "name": "full",
    "dtype": "mixed_bfloat16",
}


def test_keys_and_defaults():
    config = Conv3D(4, 3, name="c", data_format="channels_last", dtype="float32").get_config()
    assert set(config) == KEYS
    assert config["dtype"] == {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},
        "registered_name": None,
    }
    assert config["kernel_initializer"] == {
        "module": "keras.initializers",
        "class_name": "GlorotUniform",
        "config": {"seed": None, "input_axes": None, "output_axes": None},
        "registered_name": None,
    }
    assert (config["activation"], config["strides"]) == ("linear", (1, 1, 1))


@pytest.mark.parametrize("arguments", [{"filters": 4, "kernel_size": 3}, FULL])
def test_round_trip_through_json(arguments):
    config = Conv3D(**arguments).get_config()
    text = json.dumps(config)
    again = Conv3D.from_config(json.loads(text))
    assert again.get_config() == config
    assert json.dumps(again.get_config()) == text


def test_full_config_makes_the_same_objects():
    layer = Conv3D.from_config(Conv3D(**FULL).get_config())
    assert layer.activation is activations.silu
    assert layer.kernel_initializer.seed == 3
    assert layer.kernel_regularizer.l1 == 0.1
    assert layer.kernel_constraint.axis == [0, 1, 2, 3]
    assert (layer.compute_dtype, layer.variable_dtype, layer.trainable) == ("bfloat16", "float32", False)


def test_lora_keys():
    config = Conv3D(4, 3, lora_rank=2, lora_alpha=8).get_config()
    assert (config["lora_rank"], config["lora_alpha"]) == (2, 8)
    assert Conv3D.from_config(config).get_config() == config
    nothing = Conv3D.from_config({"filters": 4, "kernel_size": 3, "lora_rank": None, "lora_alpha": None})
    assert set(nothing.get_config()) == KEYS


def test_input_config_is_not_changed():
    config = Conv3D(**FULL).get_config()
    copy = json.loads(json.dumps(config))
    Conv3D.from_config(config)
    assert json.loads(json.dumps(config)) == copy


def test_short_forms():
    layer = Conv3D.from_config(
        {"filters": 2, "kernel_size": [2, 2, 2], "kernel_initializer": {"class_name": "ones", "config": {}}}
    )
    assert layer.kernel_size == (2, 2, 2)
    assert isinstance(layer.kernel_initializer, initializers.Ones)


@pytest.mark.parametrize("config", [{"filters": 2, "kernel_size": [2, 2, 2], "foo": 2}, "a", {"filters": 2}])
def test_bad_configs(config):
    with pytest.raises(TypeError) as caught:
        Conv3D.from_config(config)
    assert str(caught.value).startswith(
        f"Error when deserializing class 'Conv3D' using config={config}.\n\nException encountered: "
    )


def gate(x):
    """A user's own activation."""
    return x


def test_custom_objects():
    config = Conv3D(2, 1, activation=gate).get_config()
    assert config["activation"]["config"] == "gate"
    with pytest.raises(TypeError, match="Could not interpret activation function identifier"):
        Conv3D.from_config(config)
    assert Conv3D.from_config(config, custom_objects={"gate": gate}).activation is gate


def test_array_initializer_survives():
    kernel = np.arange(2, dtype=np.float32).reshape(1, 1, 1, 1, 2)
    config = json.loads(json.dumps(Conv3D(2, 1, kernel_initializer=kernel).get_config()))
    layer = Conv3D.from_config(config)
    layer.build((1, 1, 1, 1, 1))
    np.testing.assert_array_equal(layer.get_weights()[0], kernel)


def test_target_is_kept_only_if_given():
    assert "target" not in Conv3D(2, 1, target=None).get_config()


def test_store_round_trip():
    layer = Conv3D(2, 1, bias_initializer="ones")
    store: dict[str, np.ndarray] = {}
    layer.save_own_variables(store)
    assert store == {}
    layer.build((1, 1, 1, 1, 3))
    layer.save_own_variables(store)
    assert set(store) == {"0", "1"}
    twin = Conv3D(2, 1)
    twin.build((1, 1, 1, 1, 3))
    twin.load_own_variables(store)
    for mine, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_store_merges_lora():
    layer = Conv3D(2, 1, lora_rank=1, use_bias=False)
    layer.build((1, 1, 1, 1, 3))
    layer.set_weights([np.ones(weight.shape) for weight in layer.weights])
    store: dict[str, np.ndarray] = {}
    layer.save_own_variables(store)
    np.testing.assert_array_equal(store["0"], np.full((1, 1, 1, 3, 2), 2))
    layer.load_own_variables(store)
    np.testing.assert_array_equal(layer.kernel, store["0"])
    assert [weight.numpy().any() for weight in layer.weights] == [True, False, False]


def test_store_of_another_layer():
    layer = Conv3D(2, 1, name="c")
    layer.build((1, 1, 1, 1, 3))
    with pytest.raises(ValueError) as caught:
        layer.load_own_variables({"0": layer.get_weights()[0]})
    assert str(caught.value) == (
        "Layer 'c' expected 2 variables, but received 1 variables during loading. Expected: ['kernel', 'bias']"
    )
