"""Transposed convolutions of the demonstration's network, which TensorFlow's arguments describe."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.demo.graph import TransposedConvolution
from tvm_conv3d.demo.network import transposed_spec
from tvm_conv3d.reference.oracle import convolve, relative_error
from tvm_conv3d.spec import NO_PADS, Conv3DSpec, Pads, same_padding

CHANNELS, FILTERS = 3, 2


def gradient(x: np.ndarray, kernel: np.ndarray, strides: tuple, pads: tuple, out_size: tuple) -> np.ndarray:
    """The definition: each input cell adds its multiple of the kernel to the cells its window covered."""
    out = np.zeros((*out_size, kernel.shape[3]))
    for cell in np.ndindex(*x.shape[:3]):
        for tap in np.ndindex(*kernel.shape[:3]):
            where = tuple(c * s + t - p.before for c, s, t, p in zip(cell, strides, tap, pads, strict=True))
            if all(0 <= w < n for w, n in zip(where, out_size, strict=True)):
                out[where] += kernel[tap] @ x[cell]
    return out


def stuffed(x: np.ndarray, kernel: np.ndarray, strides: tuple, pads: tuple, out_size: tuple) -> np.ndarray:
    """The same as a convolution of the zero-stuffed input with the flipped kernel."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape, strides, strict=False)]
    spread = np.zeros((1, *sizes, x.shape[3]))
    spread[0, :: strides[0], :: strides[1], :: strides[2]] = x
    around = tuple(
        Pads(k - 1 - p.before, o + p.before - n)
        for k, p, o, n in zip(kernel.shape, pads, out_size, sizes, strict=False)
    )
    spec = Conv3DSpec(1, tuple(sizes), x.shape[3], kernel.shape[3], kernel.shape[:3], pads=around, bias=False)  # type: ignore[arg-type]
    return convolve(spec, spread, np.moveaxis(kernel[::-1, ::-1, ::-1], 3, 4))[0]


def as_step(kernel: np.ndarray, strides: tuple, padding: str, out_size: tuple) -> TransposedConvolution:
    return TransposedConvolution("up", (1, *out_size, kernel.shape[3]), ("x",), kernel, strides, padding)


@pytest.mark.parametrize(
    ("taps", "strides", "size", "rest"),
    [
        ((3, 3, 3), (2, 2, 2), (2, 3, 2), 0),
        ((3, 3, 3), (2, 2, 2), (2, 1, 3), -1),
        ((2, 2, 2), (2, 2, 2), (2, 2, 3), 0),
        ((4, 4, 4), (2, 2, 2), (2, 3, 2), 0),
        ((5, 3, 1), (3, 2, 1), (2, 3, 3), 0),
        ((1, 2, 3), (3, 3, 3), (2, 2, 2), 0),
        ((3, 2, 4), (1, 1, 1), (3, 4, 4), 0),
    ],
)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_equals_the_definition(taps: tuple, strides: tuple, size: tuple, rest: int, padding: str) -> None:
    random = np.random.default_rng(1)
    x, kernel = random.normal(size=(*size, CHANNELS)), random.normal(size=(*taps, FILTERS, CHANNELS))
    if padding == "same":
        out_size = tuple(n * s + rest * (s > 1) for n, s in zip(size, strides, strict=True))
        pads = same_padding(out_size, taps, strides, (1, 1, 1))
    else:
        # `rest` cells beyond the last window belong to the output, too; no window covered them.
        out_size = tuple((n - 1) * s + k - rest * (s > 1) for n, s, k in zip(size, strides, taps, strict=True))
        pads = NO_PADS
    expected = gradient(x, kernel, strides, pads, out_size)
    spec = transposed_spec(as_step(kernel, strides, padding, out_size), (1, *x.shape))
    assert relative_error(convolve(spec, x[None], kernel)[0], expected) < 1e-14
    assert relative_error(stuffed(x, kernel, strides, pads, out_size), expected) < 1e-14


@pytest.mark.parametrize(("size", "padding"), list(itertools.product([3, 6], ["same", "valid"])))
def test_sizes_that_do_not_belong_together_are_refused(size: int, padding: str) -> None:
    with pytest.raises(DemoError, match=r"not to the input's"):
        transposed_spec(as_step(np.ones((3, 3, 3, 1, 1)), (2, 2, 2), padding, (9, 9, 9)), (1, *(size,) * 3, 1))
