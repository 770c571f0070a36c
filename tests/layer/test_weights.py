"""What a layer holds: weights, variables, losses, LoRA."""

from __future__ import annotations

import numpy as np
import pytest

from keras_cases import expected
from layer_samples import SHAPE, random_weights, sample
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import regularizers
from tvm_conv3d.reference import oracle


def test_get_and_set_weights():
    layer = Conv3D(3, 2)
    x = sample()
    before = layer(x)
    weights = layer.get_weights()
    weights[0][:] = 7
    np.testing.assert_array_equal(layer(x), before)
    layer.set_weights([2 * weight for weight in layer.get_weights()])
    np.testing.assert_allclose(layer(x), 2 * before, rtol=1e-5)
    layer.bias.assign(np.ones(3))
    np.testing.assert_allclose(layer(x), 2 * before + 1, rtol=1e-4, atol=1e-5)


def test_set_weights_errors():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError) as caught:
        layer.set_weights([1])
    assert str(caught.value) == (
        "You called `set_weights(weights)` on layer 'c' with a weight list of length 1, "
        "but the layer was expecting 0 weights."
    )
    layer.build(SHAPE)
    before = layer.get_weights()
    with pytest.raises(ValueError) as caught:
        layer.set_weights([np.ones((2, 2, 2, 4, 3)), np.ones(4)])
    assert str(caught.value) == "Layer c weight shape (3,) is not compatible with provided weight shape (4,)."
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])
    with pytest.raises(AttributeError, match="shape"):
        layer.set_weights([1, 2])


def test_weights_in_pytorchs_order_are_refused_with_the_way_to_turn_them():
    layer = Conv3D(3, 2, name="c")
    layer.build(SHAPE)
    foreign = np.ones((3, 4, 2, 2, 2))
    for take in (lambda x: layer.set_weights([x, np.ones(3)]), layer.kernel.assign):
        with pytest.raises(ValueError, match=r"fits after `transpose\(2, 3, 4, 1, 0\)`"):
            take(foreign)
        take(foreign.transpose(2, 3, 4, 1, 0))
        for other in (np.ones((3, 5, 2, 2, 2)), np.ones((4, 3, 2, 2, 2)), np.ones((3, 4, 2, 2))):
            with pytest.raises(ValueError) as caught:
                take(other)
            assert "transpose" not in str(caught.value)


def test_variables():
    layer = Conv3D(3, 2)
    layer.build(SHAPE)
    kernel = layer.kernel
    version = kernel.version
    kernel.assign_add(np.ones(kernel.shape)).assign_sub(np.ones(kernel.shape))
    assert kernel.version == version + 2
    np.testing.assert_array_equal(np.asarray(kernel), kernel.numpy())
    np.testing.assert_array_equal(kernel * 2 + kernel, kernel.numpy() * 2 + kernel.numpy())
    np.testing.assert_array_equal(kernel[0], kernel.numpy()[0])
    assert np.asarray(kernel, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        kernel.value[...] = 0
    np.asarray(kernel)[...] = 0
    assert kernel.numpy().any()
    with pytest.raises(ValueError, match=r"variable\.shape=\(3,\), Received: value\.shape=\(4,\)"):
        layer.bias.assign(np.ones(4))
    assert repr(layer.bias).startswith(f"<Variable path={layer.name}/bias, shape=(3,), dtype=float32, value=[")


def test_trainable():
    layer = Conv3D(3, 2, kernel_regularizer="l2", activity_regularizer="l1")
    layer(sample())
    assert layer.trainable_weights == layer.weights == layer.trainable_variables == layer.variables
    assert len(layer.losses) == 2
    layer.trainable = False
    assert not layer.kernel.trainable
    assert layer.trainable_weights == []
    assert layer.non_trainable_weights == layer.weights == layer.non_trainable_variables
    assert len(layer.losses) == 1
    layer.kernel.trainable = True
    assert layer.trainable_weights == []
    frozen = Conv3D(3, 2, trainable=False)
    frozen.build(SHAPE)
    assert frozen.trainable_weights == []


def test_count_params():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError) as caught:
        layer.count_params()
    assert str(caught.value) == (
        "You tried to call `count_params` on layer 'c', but the layer isn't built. "
        "You can build it manually via: `layer.build(input_shape)`."
    )
    layer.build(SHAPE)
    assert layer.count_params() == 2 * 2 * 2 * 4 * 3 + 3


# Losses


def test_losses():
    layer = Conv3D(3, 2, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer=regularizers.L1(0.1))
    layer.build(SHAPE)
    random_weights(layer)
    kernel, bias = layer.get_weights()
    own = [0.01 * np.square(kernel).sum(), 0.01 * np.abs(bias).sum()]
    np.testing.assert_allclose(layer.losses, own, rtol=1e-5)
    for seed in (0, 1):
        y = layer(sample(seed=seed))
        np.testing.assert_allclose(layer.losses, [0.1 * np.abs(y).sum() / 2, *own], rtol=1e-5)
    layer.call(sample(seed=2))
    np.testing.assert_allclose(layer.losses[0], 0.1 * np.abs(y).sum() / 2, rtol=1e-5)


def test_custom_regularizers():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(3, 2, kernel_regularizer=lambda w: 2.0, activity_regularizer=lambda y: torch.sum(torch.abs(y)))
    y = layer(torch.from_numpy(sample()))
    np.testing.assert_allclose(layer.losses, [np.abs(y.numpy()).sum() / 2, 2.0], rtol=1e-5)


def test_orthogonal_regularizer_refuses_a_kernel():
    layer = Conv3D(3, 2, kernel_regularizer="orthogonal_regularizer")
    layer.build(SHAPE)
    with pytest.raises(ValueError, match="Inputs to OrthogonalRegularizer must have rank 2"):
        _ = layer.losses


def test_constraints_wait_for_apply():
    layer = Conv3D(3, 2, kernel_constraint="non_neg")
    layer.build(SHAPE)
    random_weights(layer)
    x = sample()
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5
    assert layer.kernel.numpy().min() < 0
    layer.apply_constraints()
    assert layer.kernel.numpy().min() == 0
    assert layer.bias.numpy().min() < 0
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5


# LoRA, quantization


def test_lora():
    layer = Conv3D(3, 2, name="c", kernel_regularizer="l2")
    x = sample()
    before = layer(x)
    layer.enable_lora(2, lora_alpha=4)
    np.testing.assert_allclose(layer(x), before, rtol=1e-6)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias", "lora_kernel_a", "lora_kernel_b"]
    assert [weight.name for weight in layer.trainable_weights] == ["bias", "lora_kernel_a", "lora_kernel_b"]
    assert [weight.shape for weight in layer.weights[2:]] == [(2, 2, 2, 4, 2), (2, 3)]
    assert len(layer.losses) == 2
    random_weights(layer)
    kernel, _, a, b = layer.get_weights()
    np.testing.assert_allclose(layer.kernel, kernel + 2 * (a @ b), rtol=1e-5, atol=1e-6)
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5
    assert (layer.get_config()["lora_rank"], layer.get_config()["lora_alpha"]) == (2, 4)
    with pytest.raises(ValueError, match=r"lora is already enabled\. This can only be done once per layer\."):
        layer.enable_lora(2)


def test_lora_from_the_constructor():
    layer = Conv3D(3, 2, lora_rank=2, dtype="mixed_float16")
    assert not layer.lora_enabled
    layer.build(SHAPE)
    assert layer.lora_enabled
    assert [weight.dtype for weight in layer.weights] == ["float32"] * 4
    assert layer.kernel.dtype == np.float16
    assert layer.lora_alpha == 2


def test_lora_is_refused():
    with pytest.raises(ValueError, match=r"Cannot enable lora on a layer that isn't yet built\."):
        Conv3D(3, 2).enable_lora(2)
    with pytest.raises(ValueError, match=r"Lora is incompatible with kernel constraints\."):
        Conv3D(3, 2, kernel_constraint="non_neg", lora_rank=2).build(SHAPE)


def test_quantize_is_not_available():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError, match=r"Cannot quantize a layer that isn't yet built\."):
        layer.quantize("int8")
    layer.build(SHAPE)
    with pytest.raises(NotImplementedError) as caught:
        layer.quantize("int8")
    assert str(caught.value) == "Layer Conv3D does not have a `quantize` method implemented."
