"""Keras's random initializers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_conv3d.layer.dtype_policy import standard_dtype
from tvm_conv3d.layer.objects import seeds
from tvm_conv3d.layer.objects.initializer import Initializer
from tvm_conv3d.support.dtypes import numpy_dtype

#: Standard deviation of a standard normal variable cut off at -2 and 2.
_TRUNCATED_STDDEV = 0.87962566103423978
_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("uniform", "truncated_normal", "untruncated_normal")


class RandomInitializer(Initializer):
    """An initializer with a seed; without one it takes a random seed once, and then repeats itself too, as Keras's.

    Args:
        seed: an int, a seed generator of this package or of Keras, or None.
    """

    def __init__(self, seed: Any = None) -> None:
        self._config_seed = seed
        self.seed = seeds.get(seed)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        target = numpy_dtype(standard_dtype(dtype))
        drawn = np.float64 if target == np.float64 else np.float32
        return self._draw(seeds.generator(self.seed), tuple(shape), np.dtype(drawn)).astype(target, copy=False)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        raise NotImplementedError("Initializer subclasses must implement the `__call__()` method.")

    def get_config(self) -> dict[str, Any]:
        return {"seed": seeds.serialize(self._config_seed)}


class RandomNormal(RandomInitializer):
    """Normal distribution.

    Args:
        mean: its mean.
        stddev: its standard deviation.
        seed: see :class:`RandomInitializer`.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: Any = None) -> None:
        self.mean = mean
        self.stddev = stddev
        super().__init__(seed)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return _normal(rng, shape, dtype, self.mean, self.stddev)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "stddev": self.stddev}


class TruncatedNormal(RandomNormal):
    """Normal distribution whose values beyond two standard deviations are drawn again.

    Args:
        mean: mean of the normal distribution.
        stddev: its standard deviation before truncation.
        seed: see :class:`RandomInitializer`.
    """

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return _truncated_normal(rng, shape, dtype, self.mean, self.stddev)


class RandomUniform(RandomInitializer):
    """Uniform distribution.

    Args:
        minval: lower bound, included.
        maxval: upper bound, excluded.
        seed: see :class:`RandomInitializer`.
    """

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: Any = None) -> None:
        self.minval = minval
        self.maxval = maxval
        super().__init__(seed)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return _uniform(rng, shape, dtype, self.minval, self.maxval)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "minval": self.minval, "maxval": self.maxval}


class VarianceScaling(RandomInitializer):
    """A distribution whose variance is `scale / n`, `n` counted from the shape.

    Args:
        scale: positive factor.
        mode: `n` is the number of inputs of a unit (`fan_in`), of outputs (`fan_out`), or their mean (`fan_avg`).
        distribution: `truncated_normal` (also `normal`), `untruncated_normal` or `uniform`.
        seed: see :class:`RandomInitializer`.
        input_axes, output_axes: the axes that count as inputs and as outputs; None is a kernel's usual layout.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        if scale <= 0.0:
            raise ValueError(f"Argument `scale` must be positive float. Received: scale={scale}")
        if mode not in _MODES:
            raise ValueError(f"Invalid `mode` argument: {mode}. Please use one of {set(_MODES)}")
        distribution = distribution.lower()
        if distribution == "normal":
            distribution = "truncated_normal"
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(
                f"Invalid `distribution` argument: {distribution}. Please use one of {set(_DISTRIBUTIONS)}"
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.input_axes = input_axes
        self.output_axes = output_axes
        super().__init__(seed)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        fan_in, fan_out = fans(shape, self.input_axes, self.output_axes)
        count = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, count)
        if self.distribution == "truncated_normal":
            return _truncated_normal(rng, shape, dtype, 0.0, math.sqrt(variance) / _TRUNCATED_STDDEV)
        if self.distribution == "untruncated_normal":
            return _normal(rng, shape, dtype, 0.0, math.sqrt(variance))
        limit = math.sqrt(3 * variance)
        return _uniform(rng, shape, dtype, -limit, limit)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "scale": self.scale,
            "mode": self.mode,
            "distribution": self.distribution,
            "input_axes": self.input_axes,
            "output_axes": self.output_axes,
        }


class _NamedScaling(VarianceScaling):
    """A variance scaling known by a name, whose config holds only what its constructor takes."""

    _scale = 1.0
    _mode = "fan_in"
    _distribution = "uniform"

    def __init__(
        self, seed: Any = None, input_axes: Sequence[int] | None = None, output_axes: Sequence[int] | None = None
    ) -> None:
        super().__init__(self._scale, self._mode, self._distribution, seed, input_axes, output_axes)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {key: config[key] for key in ("seed", "input_axes", "output_axes")}


class GlorotUniform(_NamedScaling):
    """Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""

    _mode = "fan_avg"


class GlorotNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""

    _mode = "fan_avg"
    _distribution = "truncated_normal"


class HeUniform(_NamedScaling):
    """Uniform within sqrt(6 / fan_in) (He et al., 2015)."""

    _scale = 2.0


class HeNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(2 / fan_in) (He et al., 2015)."""

    _scale = 2.0
    _distribution = "truncated_normal"


class LecunUniform(_NamedScaling):
    """Uniform within sqrt(3 / fan_in) (Klambauer et al., 2017)."""


class LecunNormal(_NamedScaling):
    """Truncated normal of standard deviation sqrt(1 / fan_in) (Klambauer et al., 2017)."""

    _distribution = "truncated_normal"


class Orthogonal(RandomInitializer):
    """An orthogonal matrix with a column for each filter, or its transpose where filters outnumber the rest.

    Args:
        gain: factor.
        seed: see :class:`RandomInitializer`.
    """

    def __init__(self, gain: float = 1.0, seed: Any = None) -> None:
        self.gain = gain
        super().__init__(seed)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        if len(shape) < 2:
            raise ValueError(
                "The tensor to initialize must be at least two-dimensional. "
                f"Received: shape={shape} of rank {len(shape)}."
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = rng.standard_normal((max(rows, columns), min(rows, columns)), dtype=dtype)
        q, r = np.linalg.qr(tall)
        # Signs of the diagonal make the factorization unique, and with it the distribution uniform.
        q = q * np.where(np.diagonal(r) < 0, -1, 1).astype(dtype)
        return dtype.type(self.gain) * (q.T if rows < columns else q).reshape(shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gain": self.gain}


def fans(
    shape: tuple[int, ...], input_axes: Sequence[int] | None = None, output_axes: Sequence[int] | None = None
) -> tuple[int, int]:
    """Numbers of inputs and outputs of a unit: a kernel's last two axes, each times the taps before them."""
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[axis] for axis in input_axes), math.prod(shape[axis] for axis in output_axes)
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    taps = math.prod(shape[:-2])
    return shape[-2] * taps, shape[-1] * taps


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], mean: float, stddev: float
) -> np.ndarray:
    return dtype.type(mean) + dtype.type(stddev) * rng.standard_normal(shape, dtype=dtype)


def _truncated_normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], mean: float, stddev: float
) -> np.ndarray:
    values = np.asarray(rng.standard_normal(shape, dtype=dtype)).ravel()
    beyond = np.flatnonzero(np.abs(values) > 2)
    while beyond.size:
        values[beyond] = rng.standard_normal(beyond.size, dtype=dtype)
        beyond = beyond[np.abs(values[beyond]) > 2]
    return (dtype.type(mean) + dtype.type(stddev) * values).reshape(shape)


def _uniform(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], low: float, high: float
) -> np.ndarray:
    return dtype.type(low) + dtype.type(high - low) * rng.random(shape, dtype=dtype)
