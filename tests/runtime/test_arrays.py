"""Arrays in any order, with any strides and of any type: the numbers of the contiguous array, one copy at most."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tvm_conv3d import Conv3D
from tvm_conv3d.compute.shared import copy_order
from tvm_conv3d.runtime import conversion, helper_code, interchange, output_pool
from tvm_conv3d.support.dtypes import numpy_dtype

SHAPE = (2, 9, 12, 70, 5)
RNG = np.random.default_rng(0)
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TARGETS = ("float32", "float64", "float16", "bfloat16")
MEGABYTE = 1 << 20

Change = Callable[[np.ndarray], np.ndarray]

#: Arrays with the numbers of their argument, in another order or with other strides.
LAYOUTS: dict[str, Change] = {
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 4, 0, 2, 1)).transpose(2, 4, 3, 0, 1),
    "channels outside": lambda x: np.ascontiguousarray(x.transpose(0, 4, 1, 2, 3)).transpose(0, 2, 3, 4, 1),
    "channels inside": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3),
    "sliced": lambda x: np.repeat(x, 2, axis=3)[:, :, :, ::2],
    "cropped": lambda x: np.pad(x, 1)[1:-1, 1:-1, 1:-1, 1:-1, 1:-1],
    "flipped rows": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
    "flipped channels": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "all flipped": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1, ::-1],
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "field of a record": lambda x: _in_record(x),
}


def _in_record(x: np.ndarray) -> np.ndarray:
    packed = np.zeros(x.shape, [("flag", "u1"), ("value", x.dtype)])
    packed["value"] = x
    return packed["value"]


@pytest.fixture
def _all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays take the way of large ones."""
    monkeypatch.setattr(conversion, "_MIN_BYTES", 64)


def bits(array: np.ndarray) -> np.ndarray:
    """The array's bits, with one for all that are no numbers."""
    return np.where(np.isnan(array.astype(np.float64)), 1, array.view(f"u{array.itemsize}"))


def samples(dtype: str) -> np.ndarray:
    """Numbers of all sizes of a type: whole bit patterns, and what lies near or between the numbers of half types."""
    wanted = numpy_dtype(dtype)
    patterns = RNG.integers(0, 256, 4096 * wanted.itemsize, np.uint8).view("?" if dtype == "bool" else wanted)
    if dtype == "bool":
        return patterns.view(np.uint8) % 2 == 1
    if dtype in INTEGERS:
        return np.concatenate([patterns >> shift for shift in range(0, 8 * wanted.itemsize, 7)])
    low, high = (np.arange(65536).astype(np.uint16).view(np.float16)[i:].astype(np.float64) for i in (0, 1))
    between = (low[:-1] + high) / 2
    near = [low, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)]
    edges = np.array([0.0, -0.0, np.inf, np.nan, 65519.99, 65520, 1e300, -1e300, 1e-300, 1e-40, 5e-324])
    return np.concatenate([patterns, *(part.astype(wanted) for part in (*near, edges))])


#: NumPy warns of signalling NaNs and of sums of infinities.
_QUIETLY = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@_QUIETLY
@pytest.mark.usefixtures("_all_compiled")
@pytest.mark.parametrize("source", ["bool", *INTEGERS, *TARGETS])
def test_casts_are_numpys(source: str) -> None:
    x = samples(source)
    halves = ("float16", "bfloat16") if source in ("int64", "uint64", *TARGETS) else ()
    for target in ("float32", *halves):
        result = interchange.prepare(x, target)
        assert result.dtype == numpy_dtype(target)
        np.testing.assert_array_equal(bits(result), bits(x.astype(result.dtype)))


@_QUIETLY
@pytest.mark.usefixtures("_all_compiled")
@pytest.mark.parametrize("source", ["uint8", "int64", "float16", "bfloat16", "float32"])
def test_casts_to_double(source: str) -> None:
    x = samples(source)
    np.testing.assert_array_equal(interchange.prepare(x, "float64"), x.astype(np.float64))


def _any_array(rng: np.random.Generator) -> np.ndarray:
    """An array of up to five axes, cut, flipped, spread and permuted at random."""
    extents = [int(e) for e in rng.choice([1, 2, 3, 5, 7, 8, 9, 17, 40, 70, 130], rng.integers(1, 6))]
    while np.prod(extents) > 200_000:
        extents[int(rng.integers(len(extents)))] = 1
    order = rng.permutation(len(extents))
    room = [2 * e + 1 for e in extents] if np.prod(extents) < 10_000 else [e + 1 for e in extents]
    whole = rng.integers(-9999, 9999, [room[axis] for axis in order]).astype(rng.choice(["i2", "f4", "f8"]))
    cuts = [
        [slice(0, e), slice(1, e + 1), slice(e, 0, -1), slice(0, 2 * e, 2) if r > 2 * e else slice(e)][rng.integers(4)]
        for e, r in zip(extents, room, strict=True)
    ]
    array = whole.transpose(np.argsort(order))[tuple(cuts)]
    assert list(array.shape) == extents
    axis = int(rng.integers(len(extents)))
    return np.broadcast_to(array.take([0], axis), array.shape) if rng.integers(8) == 0 else array


@pytest.mark.usefixtures("_all_compiled")
def test_any_strides() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        array = _any_array(rng)
        copy = conversion.contiguous(array, np.dtype(np.float32))
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, array, err_msg=f"{array.shape} {array.strides} {array.dtype}")


@pytest.mark.usefixtures("_all_compiled")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "int16", "float64"])
def test_a_layer_takes_any_layout(name: str, dtype: str) -> None:
    layer = Conv3D(4, 3)
    x = RNG.integers(-99, 99, SHAPE).astype(dtype)
    changed = LAYOUTS[name](x)
    np.testing.assert_array_equal(changed, x)
    np.testing.assert_array_equal(layer(changed), layer(x.astype(np.float32)))


@pytest.mark.usefixtures("_all_compiled")
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_torch_layouts(data_format: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(4, 3, data_format=data_format, accuracy="strict")  # one plan for each size
    x = torch.from_numpy(RNG.standard_normal((2, 20, 9, 12, 20)).astype(np.float32))
    inside = x.contiguous(memory_format=torch.channels_last_3d)
    negative = torch.complex(torch.zeros_like(x), x).conj().imag
    assert negative.is_neg() and not inside.is_contiguous()
    for tensor in (inside, x.permute(0, 4, 2, 3, 1), x[:, :, ::2], negative):
        result = layer(tensor)
        assert isinstance(result, torch.Tensor)
        assert torch.equal(result, layer(tensor.clone(memory_format=torch.contiguous_format)))
    for dtype in (torch.bfloat16, torch.float16, torch.int32):
        assert torch.equal(layer(inside.to(dtype)), layer(x.to(dtype).float()))


def test_what_lies_right_is_not_copied() -> None:
    for dtype in TARGETS:
        x = np.zeros((2, 300, 600, 1, 3), numpy_dtype(dtype))
        x.setflags(write=False)
        assert interchange.prepare(x, dtype) is x
    # an axis of one element has no stride
    odd = np.zeros((2, 300, 600, 3), np.float32)[:, :, :, None]
    assert np.shares_memory(interchange.prepare(odd, "float32"), odd)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Copies that are compiled, from a process that has none loaded."""
    found: list[Any] = []
    real = conversion._module

    def counted(*what: str) -> Any:
        found.append(what)
        return real(*what)

    def forget() -> None:
        conversion._compiled.cache_clear()
        helper_code._modules.clear()

    forget()
    monkeypatch.setattr(conversion, "_module", counted)
    yield found
    forget()


def test_compiled_once_and_kept(
    compilations: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path_factory.mktemp("copies")))
    dtype = np.dtype(np.float32)
    small = np.zeros((1, 20, 30, 40, 4), np.float64)
    large = [np.asfortranarray(np.zeros((n, 80, 90), np.float64)) for n in (40, 50)]
    conversion.contiguous(small, dtype)
    conversion.contiguous(large[0].astype(">f8"), dtype)
    assert compilations == []
    for array in large:
        conversion.contiguous(array, dtype)
    assert compilations == [("staged", "float64", "float32")]
    conversion._compiled.cache_clear()
    helper_code._modules.clear()
    conversion.contiguous(large[0], dtype)
    assert len(compilations) == 1


def test_all_threads_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = conversion.threads.run
    monkeypatch.setattr(conversion.threads, "run", lambda *given: (calls.append(given), real(*given)))
    x = np.zeros((64, 80, 90), np.float32)[:, ::-1]
    conversion.contiguous(x, x.dtype)
    assert len(calls) == 1
    _, axes, tile = copy_order.plan(x.shape, [s // 4 for s in x.strides], 4)
    tiles = np.prod([-(-axis.extent // size) for axis, size in zip(axes, (1, 1, 1, *tile), strict=True)])
    assert tiles >= 16


@pytest.mark.parametrize("name", ["fortran", "channels outside", "sliced", "all flipped", "big endian"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "float64"])
def test_a_call_makes_one_copy(name: str, dtype: str) -> None:
    layer = Conv3D(1, 1, strides=8)
    x = LAYOUTS[name](np.ones((1, 64, 256, 256, 4), dtype))
    layer(x)
    output_pool.release()
    tracemalloc.start()
    try:
        layer(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * x.size + 4 * MEGABYTE


def test_the_copys_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Conv3D(1, 1, strides=8)
    x = np.asfortranarray(np.ones((1, 64, 64, 64, 4), np.float32))
    layer(x)
    monkeypatch.setattr(output_pool, "_aligned", lambda size: pytest.fail(f"{size} bytes of new memory"))
    layer(x)


_RESIDENT = """
    import pathlib
    import numpy as np
    from tvm_conv3d import Conv3D

    def kilobytes(key):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    def array(n):
        return np.asfortranarray(np.ones((1, n, 256, 256, 4), np.float64))

    layer = Conv3D(1, 1, strides=8)
    layer(array(8))  # compiles the copy
    x = array(64)
    layer.plan_for(x.shape)
    before = kilobytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    layer(x)
    print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_resident_memory_grows_by_one_copy() -> None:
    command = [sys.executable, "-c", textwrap.dedent(_RESIDENT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # of 64 MB, and what compiling the layer for this size takes
    assert float(done.stdout) < 64 + 40


def test_subclasses_of_numpys_arrays_are_taken_as_their_data(tmp_path: Any) -> None:
    layer = Conv3D(4, 3)
    x = RNG.standard_normal((1, 5, 6, 7, 3)).astype(np.float32)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    file[...] = x
    for array in (file, np.ma.masked_greater(x, 0.5)):
        result = layer(array)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, layer(x))


def test_tensorflow_results_are_not_copied() -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    for shape, dtype in (((64, 64, 64), np.float32), ((3, 5), np.float32), ((0, 2), np.float32)):
        array = output_pool.empty(shape, np.dtype(dtype))
        array[...] = 7
        restored = interchange.wrap(tensorflow.zeros((1,))).restore(array)
        assert isinstance(restored, tensorflow.Tensor)
        np.testing.assert_array_equal(restored.numpy(), array)
        if array.nbytes >= MEGABYTE:
            assert np.shares_memory(np.asarray(restored), array)
    half = interchange.wrap(tensorflow.zeros((1,))).restore(np.ones(4, ml_dtypes.bfloat16))
    assert half.dtype == tensorflow.bfloat16
