"""A problem's data, and its expected values at some positions."""

from __future__ import annotations

import numpy as np
import pytest

from small_layers import SPECS, same_spec
from tvm_conv3d.reference import oracle as reference
from tvm_conv3d.reference import problem
from tvm_conv3d.spec import Conv3DSpec


@pytest.mark.parametrize("spec", SPECS, ids=Conv3DSpec.key)
def test_oracle_at_positions_is_the_oracle(spec):
    rng = np.random.default_rng(3)
    x, kernel = rng.standard_normal(spec.input_shape), rng.standard_normal(spec.kernel_shape)
    bias = rng.standard_normal(spec.filters)
    positions = problem.choose_positions(spec, rng)
    whole = problem.values_at(reference.convolve(spec, x, kernel, bias), positions, spec.data_format)
    assert len(positions) == spec.batch * np.prod(spec.out_size)
    np.testing.assert_allclose(reference.convolve_at(spec, x, kernel, bias, positions), whole, atol=1e-12)
    without = reference.convolve_at(spec, x, kernel, None, positions)
    np.testing.assert_allclose(without + bias, whole, atol=1e-12)


def test_oracle_at_positions_in_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    spec = SPECS[3]
    x, kernel = rng.standard_normal(spec.input_shape), rng.standard_normal(spec.kernel_shape)
    positions = problem.choose_positions(spec, rng)
    at_once = reference.convolve_at(spec, x, kernel, None, positions)
    monkeypatch.setattr(reference, "_PATCH_CELLS", 500)
    np.testing.assert_allclose(reference.convolve_at(spec, x, kernel, None, positions), at_once, atol=1e-12)


def test_large_layers_are_sampled_with_their_corners(monkeypatch):
    monkeypatch.setattr(problem, "ORACLE_MACS", 0)
    spec = same_spec(size=(9, 9, 9))
    positions = problem.choose_positions(spec, np.random.default_rng(0))
    assert len(positions) == 16 + 64
    assert {(0, 0, 0, 0), (1, 8, 8, 8), (0, 8, 0, 8)} <= set(map(tuple, positions))
    assert (positions >= 0).all()
    assert (positions < [2, 9, 9, 9]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_data_is_exact_in_the_layer_s_type(tmp_path, dtype):
    spec = same_spec(dtype=dtype)
    made = problem.make(spec, tmp_path)
    x = np.load(tmp_path / "x.npy")
    assert x.dtype == (np.float64 if dtype == "float64" else np.float32)
    if dtype == "float16":
        assert (x.astype(np.float16) == x).all()
    if dtype == "bfloat16":
        assert (x.view(np.uint32) & 0xFFFF == 0).all()
    # A check against nothing but zeros would accept anything.
    assert 0.2 < (made.expected > 0).mean() < 0.8
