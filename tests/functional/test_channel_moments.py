"""Moments of channels, as batch norms take them in training, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_conv3d.functional.normalization import channel_moments


@pytest.mark.parametrize("shape", [(2, 7, 9, 11, 5), (1, 1, 1, 1, 3), (3, 40, 20, 10, 64)])
@pytest.mark.parametrize(("mean", "scale"), [(0.5, 1.0), (1e3, 1.0), (0.0, 1e30)])
def test_mean_and_variance(shape: tuple[int, ...], mean: float, scale: float) -> None:
    x = ((np.random.default_rng(4).standard_normal(shape) + mean) * scale).astype(np.float32)
    found = channel_moments(x)
    wide = x.astype(np.float64).reshape(-1, shape[-1])
    np.testing.assert_allclose(found[0], wide.mean(0), rtol=1e-6, atol=1e-7 * scale)
    np.testing.assert_allclose(found[1], wide.var(0), rtol=1e-6)


def test_what_has_no_moments() -> None:
    assert np.isnan(channel_moments(np.ones((0, 2, 2, 2, 3), np.float32))).all()
    x = np.ones((1, 2, 2, 2, 3), np.float32)
    x[0, 1, 1, 1] = 1, np.inf, np.nan
    np.testing.assert_array_equal(np.isfinite(channel_moments(x)), [[True, False, False]] * 2)
