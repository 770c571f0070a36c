"""The functional form of transposed convolution: Keras's and torch's paddings, against the oracle and beside them."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, numpy_dtype
from tvm_conv3d import conv3d_transpose
from tvm_conv3d.functional.transposed_arguments import TransposeArguments
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DATA_GRADIENT, Conv3DSpec, Pads

SIZE, CHANNELS, FILTERS, KERNEL = (3, 4, 5), 4, 6, (3, 2, 4)
RNG = np.random.default_rng(0)


def arrays(dtype: str = "float32", groups: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An input of two samples, a kernel and a bias."""
    shapes = ((2, *SIZE, CHANNELS), (*KERNEL, FILTERS // groups, CHANNELS), (FILTERS,))
    x, w, b = (RNG.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in shapes)
    return x, w, b


def scattered(
    x: Any, w: Any, b: Any, before: Any, size: Any, strides: Any = (1, 1, 1), dilation: Any = (1, 1, 1), groups: int = 1
) -> np.ndarray:
    """The oracle's result of `size`, which begins `before` cells behind the first that a tap reaches."""
    axes = zip(x.shape[1:4], strides, w.shape[:3], dilation, before, size, strict=True)
    pads = tuple(Pads(p, (n - 1) * s + (k - 1) * d + 1 - p - out) for n, s, k, d, p, out in axes)
    channels = w.shape[3] * groups
    spec = Conv3DSpec(
        x.shape[0], size, channels, x.shape[4], w.shape[:3], strides, dilation, pads, groups, direction=DATA_GRADIENT
    )  # type: ignore[arg-type]
    return oracle.convolve(spec, np.asarray(x, np.float64), np.asarray(w, np.float64), b)


def check(result: Any, wanted: np.ndarray, dtype: str = "float32") -> None:
    assert result.shape == wanted.shape
    assert oracle.relative_error(np.asarray(result), wanted) < max(BOUNDS[dtype], WINOGRAD_BOUND)


#: Padding, output padding; what is cut off before, and the size of the result, for strides (1, 2, 3).
CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "valid": ("valid", None, (0, 0, 0), (5, 8, 16)),
    "valid, output padding": ("VALID", (0, 1, 2), (0, 0, 0), (5, 9, 18)),
    "same": ("same", None, (1, 0, 0), (3, 8, 15)),
    "same, output padding": ("same", 1, (0, 0, 1), (4, 7, 13)),
    "none": (0, None, (0, 0, 0), (5, 8, 16)),
    "int": (1, None, (1, 1, 1), (3, 6, 14)),
    "triple": ((1, 0, 2), (0, 1, 2), (1, 0, 2), (3, 9, 14)),
    "pairs": (((2, 0), (0, 1), (1, 3)), 0, (2, 0, 1), (3, 7, 12)),
    "negative": (((-2, 0), (0, -1), (-1, -1)), None, (-2, 0, -1), (7, 9, 18)),
}


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("name", CASES)
def test_paddings(name: str, data_format: str) -> None:
    padding, output_padding, before, size = CASES[name]
    x, w, b = arrays()
    more = {"strides": (1, 2, 3), "padding": padding, "output_padding": output_padding, "data_format": data_format}
    wanted = scattered(x, w, b, before, size, (1, 2, 3))
    if data_format == CHANNELS_FIRST:
        # of either order of memory
        check(conv3d_transpose(np.moveaxis(x, -1, 1), w, b, **more), np.moveaxis(wanted, -1, 1))
        x, wanted = np.moveaxis(x, -1, 1).copy(), np.moveaxis(wanted, -1, 1)
    check(conv3d_transpose(x, w, b, **more), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_types_groups_dilation_and_post_ops(dtype: str) -> None:
    x, w, b = arrays(dtype, groups=2)
    result = conv3d_transpose(x, w, b, strides=2, dilation=(1, 3, 2), groups=2, post_ops=("relu",))
    assert result.dtype == x.dtype
    wanted = scattered(x, w, b.astype(np.float64), (0, 0, 0), (7, 10, 15), (2, 2, 2), (1, 3, 2), 2)
    check(result, np.maximum(wanted, 0), dtype)


def test_weights_are_told_by_content_and_shapes_may_change() -> None:
    x, w, b = arrays()
    first = conv3d_transpose(x, w, b, strides=2)
    w *= 2
    np.testing.assert_allclose(conv3d_transpose(x, w, b, strides=2) - b, 2 * (first - b), rtol=1e-4, atol=1e-4)
    check(conv3d_transpose(x[:, :2], w, strides=2), scattered(x[:, :2], w, None, (0, 0, 0), (5, 8, 12), (2, 2, 2)))


def test_what_there_is_none_of() -> None:
    x, w, b = arrays()
    assert conv3d_transpose(x[:0], w, b, strides=2).shape == (0, 7, 8, 12, FILTERS)
    assert conv3d_transpose(x[:, :0], w, b, strides=2).shape == (2, 0, 8, 12, FILTERS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"padding": 4}, r"`padding` leaves nothing of the result.*depth, height and width \(3, 4, 5\)"),
        ({"padding": "full"}, '`padding` must be "valid", "same"'),
        ({"output_padding": -1}, "`output_padding` must be an integer of at least 0, or three.*output_padding=-1"),
        ({"output_padding": (1, 2)}, "`output_padding` must be an integer of at least 0, or three"),
        ({"strides": 0}, "`strides` must be an integer of at least 1"),
        ({"groups": 3}, "channels of `x` must be divisible by `groups`. Received: 4 channels, groups=3"),
        ({"w": np.zeros((3, 2, 4, 6, 5), "float32")}, r"filters / groups, channels\), with 4 channels.*permute"),
        ({"w": np.zeros((3, 2, 4, 6), "float32")}, "`w` must have five axes, .*filters / groups, channels"),
        ({"b": np.zeros(4, "float32")}, r"`b` must have shape \(6,\)"),
    ],
)
def test_what_is_refused(more: dict[str, Any], message: str) -> None:
    x, w, b = arrays()
    with pytest.raises(ValueError, match=message):
        conv3d_transpose(**{"x": x, "w": w, "b": b, **more})


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("strides", "dilation", "output_padding"),
    [(1, 1, None), (1, 2, None), (1, 2, 0), (2, 1, None), (2, 1, 0), (2, 1, 1), (3, 1, None), (3, 1, 2)],
)
def test_shapes_are_keras(strides: int, dilation: int, padding: str, output_padding: int | None) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    for kernel in (1, 2, 3, 4):
        layer = keras.layers.Conv3DTranspose(
            FILTERS, kernel, strides, padding, CHANNELS_LAST, output_padding=output_padding, dilation_rate=dilation
        )
        kernel_shape = (kernel,) * 3 + (FILTERS, CHANNELS)
        arguments = TransposeArguments.of(
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=1,
            data_format=CHANNELS_LAST,
            post_ops=(),
            output_padding=output_padding,
        )
        spec = arguments.problem((2, *SIZE, CHANNELS), kernel_shape, "float32", None).spec
        assert spec.output_shape == tuple(layer.compute_output_shape((2, *SIZE, CHANNELS)))
        assert spec.input_shape == (2, *SIZE, CHANNELS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory", ["contiguous_format", "channels_last_3d"])
def test_beside_torch(memory: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    layer = torch.nn.ConvTranspose3d(8, 12, (3, 2, 3), (2, 1, 3), (1, 0, 1), (1, 0, 2), groups=2).to(kind)
    x = torch.rand(2, 8, *SIZE, dtype=kind).to(memory_format=getattr(torch, memory))
    with torch.no_grad():
        result = conv3d_transpose(
            x,
            layer.weight.permute(2, 3, 4, 1, 0),
            layer.bias,
            strides=(2, 1, 3),
            padding=(1, 0, 1),
            output_padding=(1, 0, 2),
            groups=2,
            data_format=CHANNELS_FIRST,
        )
        wanted = layer(x)
    assert result.dtype == kind and result.is_contiguous(memory_format=getattr(torch, memory))
    tolerance = 1e-5 if dtype == "float32" else float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
    torch.testing.assert_close(result, wanted, rtol=4 * tolerance, atol=4 * tolerance)


def test_gradients_are_not_lost() -> None:
    torch = pytest.importorskip("torch")
    x, w, b = map(torch.from_numpy, arrays())
    with pytest.raises(RuntimeError, match="conv3d_transpose"):
        conv3d_transpose(x.requires_grad_(), w, b)
