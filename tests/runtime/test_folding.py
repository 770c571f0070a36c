"""Batch norms that become part of the weights before them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tvm_conv3d.runtime import folding
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.runtime.kept_weights import Store

RNG = np.random.default_rng(0)


def norm(filters: int, weight: bool = True, bias: bool = True, transposed: bool = False, groups: int = 1) -> BatchNorm:
    rows = [RNG.normal(size=filters), RNG.random(filters) + 0.1, *RNG.normal(size=(weight + bias, filters))]
    return BatchNorm(np.concatenate(rows).astype(np.float32), weight, bias, 1e-5, transposed, groups)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("transposed", "groups"), [(False, 1), (False, 3), (True, 1), (True, 3)])
def test_each_filter_has_its_factor(dtype: type, transposed: bool, groups: int) -> None:
    filters, channels = 6, 9
    shape = (3, 2, 1, filters // groups, channels) if transposed else (3, 2, 1, channels // groups, filters)
    kernel, bias = RNG.normal(size=shape).astype(dtype), RNG.normal(size=filters).astype(dtype)
    given = norm(filters, transposed=transposed, groups=groups)
    folded, moved = folding.fold(kernel, bias, given, np.dtype(dtype).name)
    assert folded.dtype == moved.dtype == dtype and folded.flags.c_contiguous
    mean, variance, weight, shift = given.values.astype(np.float64).reshape(4, filters)
    for number in range(filters):
        scale = weight[number] / np.sqrt(variance[number] + 1e-5)
        if transposed:
            group, within = divmod(number, filters // groups)
            here = (..., within, slice(group * channels // groups, (group + 1) * channels // groups))
        else:
            here = (..., number)
        exact = kernel[here].astype(np.float64) * scale
        error = np.abs(folded[here].astype(np.float64) - exact)
        assert (error <= 1.01 * float(ml_dtypes.finfo(dtype).eps) / 2 * np.abs(exact)).all()
        wanted = (float(bias[number]) - mean[number]) * scale + shift[number]
        assert float(moved[number]) == pytest.approx(wanted, rel=float(ml_dtypes.finfo(dtype).eps))


def test_norms_of_fewer_parts() -> None:
    kernel = RNG.normal(size=(1, 1, 1, 2, 3)).astype(np.float32)
    for weight, bias in ((False, False), (True, False), (False, True)):
        given = norm(3, weight, bias)
        folded, moved = folding.fold(kernel, None, given, "float32")
        rows = given.values.astype(np.float64).reshape(-1, 3)
        scale = (rows[2] if weight else 1) / np.sqrt(rows[1] + 1e-5)
        np.testing.assert_allclose(folded, kernel * scale, rtol=1e-6)
        np.testing.assert_allclose(moved, (rows[-1] if bias else 0) - rows[0] * scale, rtol=1e-6)


def test_contents_are_told_apart_by_all_of_a_norm() -> None:
    store = Store()
    kernel = RNG.normal(size=(1, 1, 1, 2, 3)).astype(np.float32)
    given = norm(3)
    kept = store.get(kernel, None, "float32", "use", given)
    again = store.get(kernel.copy(), None, "float32", "use", given._replace(values=given.values.copy()))
    assert again.version is kept.version
    others = [None, given._replace(epsilon=1e-3), given._replace(values=given.values + 1)]
    # the same numbers as mean, variance and weight, and as mean, variance and bias
    rows = given.values[:9]
    others += [BatchNorm(rows, True, False, 1e-5, False, 1), BatchNorm(rows, False, True, 1e-5, False, 1)]
    found = [store.get(kernel, None, "float32", "use", each) for each in others]
    assert len({id(weights.version) for weights in (kept, *found)}) == len(store) == 6


def test_what_is_kept_is_a_copy() -> None:
    store = Store()
    kernel, given = RNG.normal(size=(1, 1, 1, 2, 3)).astype(np.float32), norm(3)
    kept = store.get(kernel, None, "float32", "use", given)
    before = kept.kernel.copy(), kept.bias.copy()
    kernel[...] = given.values[...] = 1
    np.testing.assert_array_equal(kept.kernel, before[0])
    np.testing.assert_array_equal(kept.bias, before[1])


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_what_can_not_be_folded_is_refused(value: float) -> None:
    kernel = RNG.normal(size=(1, 1, 1, 2, 3)).astype(np.float32)
    given = norm(3)
    given.values[4] = value
    if value == np.inf:
        # then the scale is 0, and all is as it is to be
        folded, _ = folding.fold(kernel, None, given, "float32")
        assert not folded[..., 1].any() and folded[..., 0].all()
        return
    store = Store()
    with pytest.raises(ValueError, match="can't be folded"):
        store.get(kernel, None, "float32", "use", given)
    assert len(store) == 0


def test_small_weights_of_float16() -> None:
    kernel = RNG.normal(size=(1, 1, 1, 2, 3)).astype(np.float16)
    kernel[..., 0] = 0
    given = BatchNorm(np.array([0, 0, 0, 1, 1, 1, 1e-7, 0, 1], np.float32), True, False, 0.0, False, 1)
    folded, _ = folding.fold(kernel, None, given, "float16")
    assert not folded[..., :2].any()
    given.values[7] = 1e-6
    with pytest.raises(ValueError, match="lose bits"):
        folding.fold(kernel, None, given, "float16")
