"""The functional form: any arrays, pads and weights, against the float64 oracle; weights that change are seen."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, numpy_dtype
from tvm_conv3d import Conv3D, conv3d, digest, functional, kept_weights, reference, set_kept_weights, structure
from tvm_conv3d.conv_arguments import standard_padding
from tvm_conv3d.kept_weights import Store
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads

SIZE, CHANNELS, FILTERS, KERNEL = (6, 7, 9), 4, 6, (3, 2, 3)
RNG = np.random.default_rng(0)


def data(dtype: str = "float32", groups: int = 1, data_format: str = CHANNELS_LAST) -> tuple[np.ndarray, ...]:
    """An input of two samples, a kernel and a bias."""
    shape = (2, *SIZE, CHANNELS) if data_format == CHANNELS_LAST else (2, CHANNELS, *SIZE)
    shapes = (shape, (*KERNEL, CHANNELS // groups, FILTERS), (FILTERS,))
    x, w, b = (RNG.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in shapes)
    return x, w, b


def expected(x: Any, w: Any, b: Any, pads: Any = ((0, 0),) * 3, data_format: str = CHANNELS_LAST, **more: Any) -> Any:
    """The oracle's result; negative pads are cut off beforehand."""
    x = np.asarray(x).astype(np.float64)
    if data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    for axis, pair in enumerate(pads, 1):
        x = np.take(x, np.arange(max(0, -pair[0]), x.shape[axis] - max(0, -pair[1])), axis)
    kept = tuple(Pads(*(max(0, pad) for pad in pair)) for pair in pads)
    spec = Conv3DSpec(x.shape[0], x.shape[1:4], x.shape[4], w.shape[4], w.shape[:3], pads=kept, **more)
    result = reference.convolve(spec, x, np.asarray(w), None if b is None else np.asarray(b))
    return np.moveaxis(result, -1, 1) if data_format == CHANNELS_FIRST else result


def check(result: Any, wanted: np.ndarray, dtype: str = "float32") -> None:
    assert result.shape == wanted.shape
    assert reference.relative_error(np.asarray(result), wanted) < max(BOUNDS[dtype], WINOGRAD_BOUND)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """In place of the process's, with nothing in it."""
    store = Store()
    monkeypatch.setattr(kept_weights, "STORE", store)
    return store


#: As given, and as three pairs.
PADDINGS: dict[str, tuple[Any, Any]] = {
    "valid": ("valid", ((0, 0),) * 3),
    "same": ("SAME", ((1, 1), (0, 1), (1, 1))),
    "int": (1, ((1, 1),) * 3),
    "zero": (0, ((0, 0),) * 3),
    "numpy's int": (np.int64(2), ((2, 2),) * 3),
    "triple": ((1, 0, 2), ((1, 1), (0, 0), (2, 2))),
    "list": ([1, 0, 2], ((1, 1), (0, 0), (2, 2))),
    "array": (np.array([[1, 0], [0, 2], [3, 1]]), ((1, 0), (0, 2), (3, 1))),
    "pairs": (((2, 0), (0, 1), (1, 3)), ((2, 0), (0, 1), (1, 3))),
    "mixed": ((1, (0, 1), [2, 0]), ((1, 1), (0, 1), (2, 0))),
    "crop": (-1, ((-1, -1),) * 3),
    "crop and pad": (((-2, 3), (1, -1), (0, -3)), ((-2, 3), (1, -1), (0, -3))),
}


@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_paddings(name: str, data_format: str) -> None:
    padding, pairs = PADDINGS[name]
    x, w, b = data(data_format=data_format)
    result = conv3d(x, w, b, padding=padding, data_format=data_format)
    assert type(result) is np.ndarray
    check(result, expected(x, w, b, pairs, data_format))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 2])
def test_types(dtype: str, groups: int) -> None:
    x, w, b = data(dtype, groups)
    result = conv3d(x, w, b, groups=groups, padding=1)
    assert result.dtype == numpy_dtype(dtype)
    check(result, expected(x, w, b, ((1, 1),) * 3, groups=groups), dtype)


@pytest.mark.parametrize(
    "steps", [{"strides": 2}, {"dilation": (1, 3, 2)}, {"strides": (1, 2, 3), "dilation": [2, 1, 2]}]
)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_strides_and_dilations_together_too(steps: dict[str, Any], data_format: str) -> None:
    x, w, _ = data(data_format=data_format)
    triples = {name: (step,) * 3 if isinstance(step, int) else tuple(step) for name, step in steps.items()}
    result = conv3d(x, w, padding=(1, 0, 1), data_format=data_format, **steps)
    check(result, expected(x, w, None, ((1, 1), (0, 0), (1, 1)), data_format, **triples))


def test_same_follows_the_strides() -> None:
    x, w, b = data()
    result = conv3d(x, w, b, strides=(2, 3, 1), padding="same")
    assert result.shape[1:4] == (3, 3, 9)
    check(result, expected(x, w, b, ((0, 1), (0, 1), (1, 1)), strides=(2, 3, 1)))


def test_post_ops() -> None:
    x, w, b = data()
    wanted = expected(x, w, b)
    check(conv3d(x, w, b, post_ops=("relu",)), np.maximum(wanted, 0))
    check(conv3d(x, w, b, post_ops=["leaky_relu"]), np.where(wanted > 0, wanted, 0.2 * wanted))
    check(conv3d(x, w, b, post_ops=[]), wanted)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_are_computed_in_the_weights_type(dtype: str) -> None:
    x, w, b = data()
    whole = (np.abs(x) * 3).astype(dtype)
    for kind in ("float32", "float64"):
        result = conv3d(whole, w.astype(kind), b)
        assert result.dtype == kind
        check(result, expected(whole, w.astype(kind), b), kind)
    result = conv3d(whole, (w * 4).astype("int8"), (b * 4).astype("int16"))
    assert result.dtype == np.float32
    check(result, expected(whole, (w * 4).astype("int8"), (b * 4).astype("int16")))


def test_weights_are_cast_to_the_inputs_type() -> None:
    x, w, b = data()
    for kinds in (("float64", "float16"), ("int32", "bool"), ("bfloat16", "float64")):
        v, c = (a.astype(numpy_dtype(kind)) for a, kind in zip((w, b), kinds, strict=True))
        result = conv3d(x, v, c)
        assert result.dtype == np.float32
        check(result, expected(x, v, c))


#: Arrays with the values of their argument.
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "flipped": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "big endian": lambda a: a.astype(">f4"),
    "misaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape),
}


@pytest.mark.parametrize("name", VIEWS)
def test_any_strides(name: str) -> None:
    x, w, b = data()
    wanted = expected(x, w, b)
    for arrays in ((VIEWS[name](x), w, b), (x, VIEWS[name](w), b), (x, w, VIEWS[name](b))):
        check(conv3d(*arrays), wanted)


@pytest.mark.parametrize("shape", [(0, 6, 7, 9, 4), (2, 0, 7, 9, 4)])
def test_inputs_without_elements(shape: tuple[int, ...]) -> None:
    _, w, b = data()
    result = conv3d(np.zeros(shape, np.float32), w, b, padding="same")
    assert result.shape == (*shape[:4], FILTERS)


# Memory's order


def inside(x: np.ndarray) -> np.ndarray:
    """(N, C, D, H, W) with the channels innermost in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3)


@pytest.mark.parametrize("cut", [False, True])
def test_numpys_views_of_channels_last(cut: bool) -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    view = inside(np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0), (1, 0))))[:, :, 1:-1, :, 1:] if cut else inside(x)
    result = conv3d(view, w, b, data_format=CHANNELS_FIRST)
    check(result, expected(x, w, b, data_format=CHANNELS_FIRST))
    assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous
    assert conv3d(x, w, b, data_format=CHANNELS_FIRST).flags.c_contiguous


def test_crops_of_channels_first_keep_the_order() -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    wanted = expected(x, w, b, ((-1, 0), (0, 0), (1, -1)), CHANNELS_FIRST)
    for array, last in ((x, False), (inside(x), True)):
        result = conv3d(array, w, b, padding=((-1, 0), 0, (1, -1)), data_format=CHANNELS_FIRST)
        check(result, wanted)
        assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous is last


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a second call takes at most, its result included."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_channels_inside_are_not_copied(library: str) -> None:
    whole = inside(np.ones((1, 4, 64, 128, 128), np.float32))
    x: Any = whole
    if library == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.from_numpy(whole)
        assert x.is_contiguous(memory_format=torch.channels_last_3d)
    w = np.ones((1, 1, 1, 4, 1), np.float32)
    assert peak(lambda: conv3d(x, w, strides=8, data_format=CHANNELS_FIRST)) < whole.nbytes // 8
    assert peak(lambda: Conv3D(1, 1, strides=8, data_format=CHANNELS_FIRST)(x)) < whole.nbytes // 2


def test_torchs_memory_formats() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    values, w, b = data(data_format=CHANNELS_FIRST)
    x = torch.from_numpy(values)
    weight = torch.from_numpy(np.ascontiguousarray(w.transpose(4, 3, 0, 1, 2)))
    bias = torch.from_numpy(b)
    formats = {"contiguous": torch.contiguous_format, "last": torch.channels_last_3d}
    cuts = {"one sample": x[:1], "one channel": x[:, :1], "a slice": x[:, :, 1:], "one cell": x[:, :, :3, :2, :3]}
    for tensor in (x, *cuts.values()):
        kernel = weight[:, : tensor.shape[1]]
        for memory_format in formats.values():
            given = tensor.contiguous(memory_format=memory_format)
            like = torch.nn.functional.conv3d(given, kernel, bias, padding=(1, 0, 1))
            result = conv3d(given, kernel.permute(2, 3, 4, 1, 0), bias, padding=(1, 0, 1), data_format=CHANNELS_FIRST)
            assert isinstance(result, torch.Tensor)
            # of one channel either may be meant; torch itself leaves the format for some small samples
            assert tensor.shape[1] == 1 or result.is_contiguous(memory_format=memory_format)
            assert tensor is not x or result.stride() == like.stride()
            torch.testing.assert_close(result, like, rtol=1e-4, atol=1e-5)


def test_layers_read_channels_inside_too() -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    layer = Conv3D(FILTERS, KERNEL, data_format=CHANNELS_FIRST)
    layer.build(x.shape)
    layer.set_weights([w, b])
    result = layer(inside(x))
    check(result, expected(x, w, b, data_format=CHANNELS_FIRST))
    assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous
    assert layer(x).flags.c_contiguous


# Other libraries


def test_libraries_may_be_mixed() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import tvm_ffi

    x, w, b = data()
    wanted = expected(x, w, b)
    makers = {"numpy": np.asarray, "torch": torch.from_numpy, "tvm_ffi": tvm_ffi.from_dlpack}
    kinds = {"numpy": np.ndarray, "torch": torch.Tensor, "tvm_ffi": tvm_ffi.Tensor}
    for name, make in makers.items():
        for other in makers.values():
            result = conv3d(make(x), other(w), other(b))
            assert isinstance(result, kinds[name])
            check(np.from_dlpack(result), wanted)
    half = torch.from_numpy(x).bfloat16()
    assert conv3d(half, torch.from_numpy(w), torch.from_numpy(b)).dtype == torch.bfloat16


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x, w, b = data()
    arrays = tuple(map(jax.numpy.asarray, (x, w, b)))
    result = conv3d(*arrays)
    assert isinstance(result, jax.Array)
    check(result, expected(x, w, b))
    with pytest.raises(TypeError, match=r"tvm_conv3d.conv3d .*hidden from jax.jit"):
        jax.jit(lambda kernel: conv3d(x, kernel))(arrays[1])


# Weights


@pytest.mark.parametrize("change", ["in place", "a view", "bias", "back"])
def test_changed_weights_are_seen(change: str) -> None:
    x, w, b = data()
    before = conv3d(x, w, b)
    check(before, expected(x, w, b))
    if change == "in place":
        w *= 2
    elif change == "a view":
        w.reshape(-1)[-1:] += 1
    elif change == "bias":
        b[3] += 1
    else:
        kept = w.copy()
        w[...] = 0
        check(conv3d(x, w, b), expected(x, w, b))
        w[...] = kept
        np.testing.assert_array_equal(conv3d(x, w, b), before)
    check(conv3d(x, w, b), expected(x, w, b))


def test_torchs_ways_to_change_weights_are_seen() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, _ = data(data_format=CHANNELS_FIRST)
    module = torch.nn.Conv3d(CHANNELS, FILTERS, KERNEL)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def step() -> None:
        module(torch.from_numpy(x)).square().mean().backward()
        optimizer.step()

    def assign() -> None:
        module.weight.data = torch.from_numpy(np.ascontiguousarray(w.transpose(4, 3, 0, 1, 2)))

    changes = [
        step,
        lambda: module.weight.data.add_(1),
        lambda: module.weight.detach().numpy().__imul__(3),
        lambda: module.bias.data.zero_(),
        assign,
    ]
    for change in (lambda: None, *changes):
        change()
        with torch.no_grad():
            result = conv3d(
                torch.from_numpy(x), module.weight.permute(2, 3, 4, 1, 0), module.bias, data_format=CHANNELS_FIRST
            )
            torch.testing.assert_close(result, module(torch.from_numpy(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("store")
def test_contents_are_packed_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    real = structure.structured
    monkeypatch.setattr(structure, "structured", lambda kernel: looked.append(kernel) or real(kernel))
    x, w, b = data()
    for kernel in (w, w.copy(), np.asfortranarray(w).copy("C"), w + 1, w):
        conv3d(x, kernel, b)
    assert len(looked) == 2
    forms = [weights.packed.values() for weights in kept_weights.STORE._entries.values() if weights.packed]
    assert [len(found) for found in forms] == [1, 1]
    # of another type they are other weights; and so are they in other groups, whatever their bytes
    conv3d(x.astype(np.float64), w, b)
    assert len(looked) == 3
    both = np.concatenate([x, x], axis=-1)
    check(conv3d(both, w, b, groups=2), expected(both, w, b, groups=2))
    assert len(looked) == 4


def test_arrays_of_any_strides_are_found_again(store: Store) -> None:
    x, w, b = data()
    for view in VIEWS.values():
        before = len(store)
        conv3d(x, view(w), b)
        there = len(store)
        conv3d(x, view(w), b)
        assert len(store) == there <= before + 1


def test_structured_kernels_keep_their_exactness() -> None:
    x = RNG.integers(-8, 8, (1, 8, 16, 16, 16)).astype(np.float32)
    box = np.ones((3, 3, 3, 16, 16), np.float32)
    result = conv3d(x, box, padding=1)
    np.testing.assert_array_equal(result, expected(x, box, None, ((1, 1),) * 3))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = data()
    store = Store(max_bytes=1 << 40, max_entries=3)
    monkeypatch.setattr(kept_weights, "STORE", store)
    for number in range(5):
        conv3d(x, w + number, b)
    assert len(store) == 3
    one = store.nbytes // 3
    assert one >= w.nbytes + b.nbytes
    set_kept_weights(2 * one)
    assert len(store) == 2
    conv3d(x, w + 3, b)  # the longest unused goes, not this one
    conv3d(x, w + 9, b)
    contents = [weights.kernel for weights in store._entries.values()]
    assert [np.array_equal(kernel, w + k) for kernel, k in zip(contents, (3, 9), strict=True)] == [True, True]
    set_kept_weights(0)
    for number in range(3):
        check(conv3d(x, w + number, b), expected(x, w + number, b))
    assert len(store) == 1
    with pytest.raises(ValueError, match="number of bytes"):
        set_kept_weights(-1)


def test_callers_may_change_their_arrays_behind_a_call(store: Store) -> None:
    """What is kept of a content are copies: a further form of it is packed from these."""
    x, w, b = data()
    conv3d(x, w, b)
    (kept,) = store._entries.values()
    w[...] = 0
    b[...] = 0
    assert np.abs(kept.kernel).min() > 0
    assert kept.bias is not None and np.abs(kept.bias).min() > 0


def test_many_threads_with_weights_of_their_own() -> None:
    x, w, b = data()
    kernels = [w + number for number in range(6)]
    wanted = [expected(x, kernel, b) for kernel in kernels]
    barrier = threading.Barrier(6)

    def work(number: int) -> float:
        barrier.wait(60)
        mine = kernels[number].copy()
        worst = 0.0
        for step in range(40):
            which = (number + step) % len(kernels)
            mine[...] = kernels[which]
            worst = max(worst, reference.relative_error(conv3d(x, mine, b), wanted[which]))
        return worst

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(work, range(6))) < WINOGRAD_BOUND


# Digests


def test_digests_tell_contents_apart() -> None:
    rng = np.random.default_rng(1)
    for size in (0, 1, 3, 8, 255, 256, 257, 5000, (1 << 16) + 1, 300_001):
        octets = rng.integers(0, 256, size, np.uint8)
        found = digest.of(octets)
        assert digest.of(np.frombuffer(b"\0" + octets.tobytes(), np.uint8)[1:]) == found
        assert digest.of(np.append(octets, np.uint8(0))) != found
        places = {int(place) for place in np.linspace(0, size - 1, 60)} if size else set()
        others = set()
        for place in places:
            for bit in (0, 7):
                octets[place] ^= 1 << bit
                others.add(digest.of(octets))
                octets[place] ^= 1 << bit
        assert len(others - {found}) == 2 * len(places)


@pytest.mark.parametrize("distance", [8, 256, 1 << 16])
def test_digests_depend_on_places(distance: int) -> None:
    """Words that change places, or signs that change in pairs, as far apart as words of one lane are."""
    values = np.random.default_rng(2).standard_normal(1 << 16)
    swapped, negated = values.copy(), values.copy()
    other = distance // 8
    swapped[[0, other]] = values[[other, 0]]
    negated[[0, other]] *= -1
    assert len({digest.of(a) for a in (values, swapped, negated, np.roll(values, other))}) == 4


def test_digests_mix_all_bits() -> None:
    """A changed bit changes half of the digest's, wherever it is."""
    octets = np.random.default_rng(3).integers(0, 256, 3000, np.uint8)
    found = int.from_bytes(digest.of(octets), "little")
    flips = []
    for place in range(0, 3000, 7):
        octets[place] ^= 0x80
        flips.append(bin(found ^ int.from_bytes(digest.of(octets), "little")).count("1"))
        octets[place] ^= 0x80
    assert 30 < np.mean(flips) < 34
    assert min(flips) > 10


@pytest.mark.parametrize(
    ("array", "dense"),
    [
        (np.zeros((2, 3, 4)), True),
        (np.zeros((2, 3, 4)).transpose(2, 0, 1), True),
        (np.zeros((2, 1, 4)).transpose(2, 0, 1), True),
        (np.zeros((2, 3, 4))[:, ::-1], False),
        (np.zeros((2, 3, 4))[:, :2], False),
        (np.broadcast_to(np.zeros(4), (3, 4)), False),
        (np.zeros((0, 3)), True),
    ],
)
def test_dense_arrays(array: np.ndarray, dense: bool) -> None:
    assert digest.is_dense(array) is dense


# Errors

X, W, B = data()

ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"x": X[0]}, ValueError, "`x` must have five axes, (batch, depth, height, width, channels)"),
    "first": (
        {"x": X[0], "data_format": CHANNELS_FIRST},
        ValueError,
        "`x` must have five axes, (batch, channels, depth, height, width) for data_format='channels_first'",
    ),
    "kernel's rank": ({"w": W[0]}, ValueError, "`w` must have five axes, (kernel depth"),
    "torch's kernel": ({"w": W.transpose(4, 3, 0, 1, 2)}, ValueError, "`w.permute(2, 3, 4, 1, 0)`"),
    "groups": ({"groups": 3}, ValueError, "divisible by `groups`. Received: 4 channels, 6 filters, groups=3"),
    "no groups": ({"groups": 0}, ValueError, "`groups` must be an integer of at least 1. Received: groups=0"),
    "bias": ({"b": B[:-1]}, ValueError, "`b` must have shape (6,), one value a filter. Received: b of shape (5,)"),
    "strides": ({"strides": (1, 2)}, ValueError, "`strides` must be an integer of at least 1, or three. Received"),
    "no strides": ({"strides": 0}, ValueError, "`strides` must be an integer of at least 1, or three. Received"),
    "dilation": ({"dilation": 1.5}, ValueError, "`dilation` must be an integer of at least 1, or three. Received"),
    "padding": ({"padding": "full"}, ValueError, '`padding` must be "valid", "same", an integer'),
    "pads": ({"padding": (1, 2)}, ValueError, "three pairs of integers (before, after). Received: padding=(1, 2)"),
    "triples": ({"padding": ((1, 2, 3),) * 3}, ValueError, "three pairs of integers"),
    "crop": ({"padding": -3}, ValueError, "`padding` crops more than there is. Received: padding=((-3, -3)"),
    "too small": ({"x": X[:, :2]}, ValueError, "The input is too small"),
    "data_format": ({"data_format": "NDHWC"}, ValueError, "`data_format` argument must be one of"),
    "post_ops": ({"post_ops": ("relu", "tanh")}, ValueError, "`post_ops` must be () or one of linear, relu"),
    "a name": ({"post_ops": "relu"}, ValueError, "in a tuple. Received: post_ops='relu'"),
    "unknown": ({"post_ops": ("swish9",)}, ValueError, "Received: post_ops=('swish9',)"),
    "residual": ({"residual": X}, ValueError, "`residual` is not taken yet"),
    "accuracy": ({"accuracy": "best"}, ValueError, "`accuracy` must be one of"),
    "limit": ({"workspace_limit": 0}, ValueError, "`workspace_limit` must be a number of bytes"),
    "target": ({"target": "tpu"}, ValueError, '`target` must be None or "llvm"'),
    "no array": ({"x": [1.0]}, TypeError, "`x` can't be taken. Expected an array or tensor. Received: [1.0]"),
    "no weights": ({"w": None}, TypeError, "`w` can't be taken. Expected an array or tensor. Received: None"),
    "complex": ({"w": W + 1j}, TypeError, "`w` must hold real numbers. Received: dtype=complex64. Cast it first."),
    "objects": ({"b": B.astype(object)}, TypeError, "`b` must hold real numbers. Received: dtype=object"),
    "text": ({"x": X.astype("U")}, TypeError, "`x` must hold real numbers. Received: dtype=<U"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name: str) -> None:
    changes, error, text = ERRORS[name]
    arguments = {"x": X, "w": W, "b": B} | changes
    for _ in range(2):  # no better the second time
        with pytest.raises(error, match=re.escape(text)):
            conv3d(arguments.pop("x", X), arguments.pop("w", W), arguments.pop("b", B), **arguments)
        arguments = {"x": X, "w": W, "b": B} | changes


def test_whole_floats_are_integers() -> None:
    """They equal them, as keys of what is prepared, too: so they are taken from the first call on."""
    assert standard_padding(1.0) == standard_padding(1) == ((1, 1),) * 3
    np.testing.assert_array_equal(conv3d(X, W, B, strides=2.0), conv3d(X, W, B, strides=2))


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_gradients_are_not_lost_in_silence(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {key: torch.from_numpy(a.copy()) for key, a in (("x", X), ("w", W), ("b", B))}
    tensors[name].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"computes no gradients, and `{name}` requires one.*`{name}.detach\(\)`"):
        conv3d(*tensors.values())
    with torch.no_grad():
        check(conv3d(*tensors.values()), expected(X, W, B))


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_tools_that_record_are_told_the_functions_name(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = {key: torch.from_numpy(a) for key, a in (("x", X), ("w", W), ("b", B))}

    def call(value: Any) -> Any:
        return conv3d(*(tensors | {name: value}).values())

    with pytest.raises(RuntimeError, match=r"tvm_conv3d\.conv3d .*hidden from torch.func.vmap"):
        torch.func.vmap(call)(tensors[name][None])
    with pytest.raises(TypeError, match=r"tvm_conv3d\.conv3d needs numbers.*tensor that has memory"):
        call(tensors[name].to("meta"))


def test_torch_compile_goes_round_it() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, b = (torch.from_numpy(a) for a in (X, W, B))
    graphs: list[Any] = []

    def model(value: Any) -> Any:
        return torch.relu(conv3d(value * 2, w, b))

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) == 2
    with pytest.raises(Exception, match=r"tvm_conv3d\.conv3d runs compiled code of its own"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.compiler.reset()


# The options


def test_options_decide_the_plan() -> None:
    x = RNG.standard_normal((1, 8, 16, 16, 32)).astype(np.float32)
    w = RNG.standard_normal((3, 3, 3, 32, 32)).astype(np.float32)
    wanted = expected(x, w, None, ((1, 1),) * 3)
    errors = [
        reference.relative_error(conv3d(x, w, padding=1, accuracy=accuracy), wanted)
        for accuracy in ("strict", "default")
    ]
    assert errors[0] < errors[1] < WINOGRAD_BOUND
    host = {"kind": "llvm", "mcpu": "haswell"}
    check(conv3d(x, w, padding=1, target=host), wanted)
    assert functional._executor((dict(host), "default", 1 << 20)) is functional._executor((host, "default", 1 << 20))


def test_the_page_of_the_documentation(tmp_path: Path) -> None:
    """Its code runs, in the order of the page."""
    pytest.importorskip("torch", reason="torch is not installed")
    page = Path(__file__).parents[1] / "docs" / "functional.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    assert "conv3d(" in code
    script = tmp_path / "page.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bfloat16_of_numpy() -> None:
    x, w, b = (a.astype(ml_dtypes.bfloat16) for a in data())
    assert conv3d(x, w, b).dtype == ml_dtypes.bfloat16
