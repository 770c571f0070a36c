"""Kernels whose values carry exact meaning are found, trained weights are not, and their zeros and signs are kept."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tvm_conv3d import Conv3D
from tvm_conv3d.layer.objects import initializers
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime.structure import structured
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST

CHANNELS = FILTERS = 16


def spread(filter_: np.ndarray) -> np.ndarray:
    """One spatial filter on every channel and filter."""
    shape = (*filter_.shape, CHANNELS, FILTERS)
    return np.broadcast_to(filter_[..., None, None], shape).astype(np.float32)


def outer(*factors: list[float]) -> np.ndarray:
    a, b, c = map(np.array, factors)
    return a[:, None, None] * b[:, None] * c


def laplace(scale: float) -> np.ndarray:
    values = np.full((3, 3, 3), scale)
    values[1, 1, 1] = -26 * scale
    return values


def shift() -> np.ndarray:
    kernel = np.zeros((3, 3, 3, CHANNELS, FILTERS), np.float32)
    kernel[0, 2, 1, range(CHANNELS), range(FILTERS)] = 1
    return kernel


def bank() -> np.ndarray:
    """Sobel along each axis, Gauss and Laplace."""
    smooth, slope = [1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]
    filters = [outer(slope, smooth, smooth), outer(smooth, slope, smooth), outer(smooth, smooth, slope)]
    filters += [outer(smooth, smooth, smooth) / 64, laplace(1.0)]
    return np.stack([filters[f % 5] for f in range(FILTERS)], -1)[..., None, :].repeat(CHANNELS, 3).astype(np.float32)


def gauss(sigma: float) -> np.ndarray:
    values = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    return outer(*(values / values.sum(),) * 3)  # type: ignore[arg-type]


STRUCTURED: dict[str, Callable[[], np.ndarray]] = {
    "count": lambda: spread(np.ones((3, 3, 3))),
    "box": lambda: spread(np.full((3, 3, 3), 1 / 27)),
    "laplace": lambda: spread(laplace(1.0)),
    "laplace over 26": lambda: spread(laplace(1 / 26)),
    "gauss": lambda: spread(gauss(0.8)),
    "sobel": lambda: spread(outer([-1, 0, 1], [1, 2, 1], [1, 2, 1])),
    "large sobel": lambda: spread(outer([-1, -2, 0, 2, 1], [1, 4, 6, 4, 1], [1, 4, 6, 4, 1])),
    "shift": shift,
    "bank": bank,
}


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
@pytest.mark.parametrize("scale", [1.0, -0.3, 2.0**-40])
def test_structure_is_found(make: Callable[[], np.ndarray], scale: float) -> None:
    assert structured(make() * np.float32(scale))


def test_one_filter_of_few_bits_among_others_is_enough_if_it_has_many_values() -> None:
    kernel = trained()
    kernel[..., 3] = spread(laplace(1 / 26))[..., 0]
    assert structured(kernel)
    kernel = trained()
    kernel[..., 3] = shift()[..., 3]
    assert not structured(kernel)


def trained(shape: tuple[int, ...] = (3, 3, 3, CHANNELS, FILTERS), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    taps=st.sampled_from([(3, 3, 3), (1, 3, 3), (5, 5, 5), (2, 2, 2), (7, 1, 1)]),
    channels=st.sampled_from([1, 3, 8, 64]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    widened=st.booleans(),
    pruned=st.sampled_from([0.0, 0.5, 0.9]),
    law=st.sampled_from(["normal", "uniform", "laplace", "magnitudes alike"]),
    scale=st.sampled_from([1.0, 0.02, 1e-5]),
)
def test_trained_weights_have_none(
    seed: int, taps: tuple[int, ...], channels: int, dtype: str, widened: bool, pruned: float, law: str, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (*taps, channels, 24)
    draws = {
        "normal": lambda: rng.normal(size=shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "laplace": lambda: rng.laplace(size=shape),
        "magnitudes alike": lambda: rng.choice([-1, 1], shape) * rng.uniform(0.9, 1, shape),
    }
    values = scale * draws[law]()
    values[rng.random(shape) < pruned] = 0
    # of filters of one value or two nobody can tell
    assume(np.count_nonzero(values) >= 4 * shape[-1])
    kernel = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert not structured(kernel.astype(np.float32) if widened else kernel)


def test_a_dying_filter_of_float16_is_no_structure() -> None:
    kernel = trained()
    kernel[..., 5] *= 1e-4
    assert not structured(kernel.astype(np.float16).astype(np.float32))


RANDOM = ["glorot_uniform", "glorot_normal", "he_uniform", "lecun_normal", "truncated_normal", "orthogonal"]


@pytest.mark.parametrize("name", RANDOM)
def test_random_initializers_have_none(name: str) -> None:
    assert not structured(initializers.get(name)((3, 3, 3, 8, 16), dtype="float32"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_none(value: float) -> None:
    kernel = spread(np.ones((3, 3, 3)))
    kernel[0, 0, 0, 0, 0] = value
    assert not structured(kernel)


@pytest.mark.parametrize(
    "kernel",
    [
        np.ones((3, 3, 3, 4, 4), np.float64),
        np.ones((1, 1, 1, 4, 4), np.float32),
        np.zeros((3, 3, 3, 4, 4), np.float32),
        np.zeros((3, 3, 3, 0, 4), np.float32),
    ],
    ids=["float64", "one tap", "zeros", "empty"],
)
def test_where_nothing_is_to_be_chosen_there_is_none(kernel: np.ndarray) -> None:
    assert not structured(kernel)


def layer_of(kernel: np.ndarray, x: np.ndarray, **more: object) -> Conv3D:
    layer = Conv3D(kernel.shape[4], kernel.shape[:3], padding="same", use_bias=False, **more)
    layer.build(x.shape)
    layer.set_weights([kernel])
    return layer


def whole_numbers(data_format: str, channels: int = CHANNELS) -> np.ndarray:
    x = np.random.default_rng(1).integers(0, 9, (1, 8, 16, 16, channels)).astype(np.float32)
    x[:, :, 5:] = 0
    return x if data_format == CHANNELS_LAST else np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.mark.parametrize("name", ["count", "laplace", "sobel", "shift", "bank"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize(
    "more", [{}, {"groups": 2}, {"strides": 2}, {"dilation_rate": 2}], ids=["plain", "groups", "strides", "dilation"]
)
def test_whole_numbers_stay_whole(name: str, data_format: str, more: dict[str, int]) -> None:
    channels = CHANNELS * more.get("groups", 1)
    x, kernel = whole_numbers(data_format, channels), STRUCTURED[name]()
    layer = layer_of(kernel, x, data_format=data_format, **more)
    spec = layer.plan_for(x.shape).spec
    np.testing.assert_array_equal(layer(x), oracle.convolve(spec, x, kernel))


@pytest.mark.parametrize("name", ["box", "gauss"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_zeros_and_signs_are_kept(name: str, data_format: str) -> None:
    x, kernel = whole_numbers(data_format), STRUCTURED[name]()
    layer = layer_of(kernel, x, data_format=data_format)
    expected = oracle.convolve(layer.plan_for(x.shape).spec, x, kernel)
    result = layer(x)
    np.testing.assert_array_equal(result > 0, expected > 0)
    assert (result >= 0).all()


def test_one_voxel_is_seen_by_27_windows() -> None:
    x = np.zeros((1, 8, 16, 16, 16), np.float32)
    x[0, 4, 7, 7, 2] = 1
    layer = Conv3D(16, 3, padding="same", kernel_initializer="ones")
    assert (layer(x) > 0).sum() == 27 * 16


def test_morphology_equals_scipy() -> None:
    mask = np.random.default_rng(3).random((12, 20, 20)) < 0.02
    ball = ndimage.generate_binary_structure(3, 2)
    kernel = np.zeros((3, 3, 3, 8, 8), np.float32)
    kernel[..., range(8), range(8)] = ball[..., None]
    x = np.zeros((1, *mask.shape, 8), np.float32)
    x[0] = mask[..., None]
    np.testing.assert_array_equal(
        layer_of(kernel, x)(x)[0] > 0, ndimage.binary_dilation(mask, ball)[..., None].repeat(8, -1)
    )


SHAPE = (1, 8, 14, 14, 32)


def algorithm(kernel: np.ndarray, **more: object) -> str:
    return layer_of(kernel, np.empty(SHAPE, np.float32), **more).plan_for(SHAPE).algorithm


def test_it_decides_the_plan_by_default_only() -> None:
    ones, drawn = np.ones((3, 3, 3, 32, 32), np.float32), trained((3, 3, 3, 32, 32))
    assert [algorithm(ones), algorithm(drawn)] == ["direct", "winograd"]
    assert [algorithm(ones, accuracy="fast"), algorithm(drawn, accuracy="fast")] == ["winograd"] * 2
    assert [algorithm(ones, accuracy="strict"), algorithm(drawn, accuracy="strict")] == ["direct"] * 2


def test_it_decides_for_gpus_too() -> None:
    shape = (1, 16, 28, 28, 128)
    layer = Conv3D(128, 3, padding="same", use_bias=False, target="cuda:sm_90")
    assert layer.plan_for(shape).algorithm == "winograd_gemm"
    layer.set_weights([np.ones((3, 3, 3, 128, 128))])
    assert layer.plan_for(shape).algorithm == "gemm"


def test_the_error_bound_follows_the_weights() -> None:
    layer = layer_of(trained((3, 3, 3, 32, 32)), np.empty(SHAPE, np.float32))
    before = layer.plan_for(SHAPE).error_bound
    layer.set_weights([np.ones((3, 3, 3, 32, 32))])
    assert layer.plan_for(SHAPE).error_bound < before
    layer.set_weights([trained((3, 3, 3, 32, 32))])
    assert layer.plan_for(SHAPE).error_bound == before


def test_it_is_looked_for_once_for_each_version_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_conv3d.runtime import structure

    seen = []
    monkeypatch.setattr(structure, "structured", lambda kernel: bool(seen.append(kernel)))
    x = np.ones((1, 4, 5, 6, 3), np.float32)
    layer = layer_of(trained((2, 2, 2, 3, 4)), x)
    layer(x), layer(x), layer.plan_for(x.shape)
    assert len(seen) == 1
    layer.set_weights([trained((2, 2, 2, 3, 4), 1)])
    layer(x)
    assert len(seen) == 2


def test_merged_kernels_count() -> None:
    layer = layer_of(np.ones((3, 3, 3, 32, 32), np.float32), np.empty(SHAPE, np.float32))
    layer.enable_lora(2)
    assert layer.plan_for(SHAPE).algorithm == "direct"
    layer._lora.b.assign(trained(layer._lora.b.shape))  # type: ignore[union-attr]
    layer._lora.a.assign(1e3 * trained(layer._lora.a.shape))  # type: ignore[union-attr]
    assert layer.plan_for(SHAPE).algorithm == "winograd"


@pytest.mark.parametrize("accuracy", ["default", "strict", "fast"])
def test_configs_keep_it(accuracy: str) -> None:
    config = Conv3D(4, 3, accuracy=accuracy).get_config()
    assert config["accuracy"] == accuracy
    assert Conv3D.from_config(config).get_config() == config


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of default, strict, fast\. Received: accuracy='exact'"):
        Conv3D(4, 3, accuracy="exact")
