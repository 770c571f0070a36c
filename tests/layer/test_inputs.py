"""Arrays of any library, layout, alignment and type come in; the same kind goes out, in a buffer of its own."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tvm_conv3d import Conv3D
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import Conv3DSpec

SHAPE = (2, 5, 6, 7, 3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal(SHAPE).astype(np.float32)
KERNEL = RNG.standard_normal((3, 3, 3, 3, 8)).astype(np.float32)
EXPECTED = oracle.convolve(Conv3DSpec(2, SHAPE[1:4], 3, 8, (3, 3, 3), bias=False), X, KERNEL)


@pytest.fixture(scope="module")
def layer() -> Conv3D:
    layer = Conv3D(8, 3, use_bias=False)
    layer.build(SHAPE)
    layer.set_weights([KERNEL])
    return layer


def misaligned(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose data lie `offset` bytes behind a 64-byte boundary."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize("offset", [0, 4, 16, 36])
def test_alignment(layer: Conv3D, offset: int) -> None:
    assert oracle.relative_error(layer(misaligned(X, offset)), EXPECTED) < 1e-6


def test_elements_that_are_not_aligned(layer: Conv3D) -> None:
    packed = np.zeros(SHAPE, [("flag", "u1"), ("value", "f4")])
    packed["value"] = X
    assert not packed["value"].flags.aligned
    assert oracle.relative_error(layer(packed["value"]), EXPECTED) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=3)[:, :, :, ::2],
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float64),
    ],
    ids=["fortran", "sliced", "reversed", "big endian", "float64"],
)
def test_layouts_and_types(layer: Conv3D, make: object) -> None:
    result = layer(make(X))  # type: ignore[operator]
    assert result.dtype == np.float32
    assert oracle.relative_error(result, EXPECTED) < 1e-6


def test_read_only_and_broadcast(layer: Conv3D) -> None:
    fixed = X.copy()
    fixed.setflags(write=False)
    assert oracle.relative_error(layer(fixed), EXPECTED) < 1e-6
    constant = np.broadcast_to(np.float32(1), SHAPE)
    np.testing.assert_array_equal(layer(constant), layer(np.ones(SHAPE, np.float32)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool", "float16"])
def test_other_numbers_are_cast(layer: Conv3D, dtype: str) -> None:
    x = (RNG.standard_normal(SHAPE) * 3).astype(dtype)
    np.testing.assert_array_equal(layer(x), layer(x.astype(np.float32)))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "O"])
def test_what_is_no_number_is_refused(layer: Conv3D, dtype: str) -> None:
    with pytest.raises(TypeError, match="real numbers"):
        layer(np.zeros(SHAPE, dtype))


def test_results_are_fresh(layer: Conv3D) -> None:
    first = layer(X)
    kept = first.copy()
    second = layer(2 * X)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


def test_any_batch_and_size_after_one_build(layer: Conv3D) -> None:
    for shape in ((1, 3, 3, 3, 3), (3, 9, 4, 5, 3), (0, 5, 6, 7, 3)):
        x = RNG.standard_normal(shape).astype(np.float32)
        spec = Conv3DSpec(shape[0], shape[1:4], 3, 8, (3, 3, 3), bias=False)
        assert oracle.relative_error(layer(x), oracle.convolve(spec, x, KERNEL)) < 1e-6


def test_tvm_tensors(layer: Conv3D) -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    result = layer(tvm_ffi.from_dlpack(X.copy()))
    assert isinstance(result, tvm_ffi.Tensor)
    assert oracle.relative_error(np.from_dlpack(result), EXPECTED) < 1e-6


def test_torch_tensors(layer: Conv3D) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(X.copy())
    for tensor in (x, x.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0), x.double()):
        result = layer(tensor)
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float32
        assert oracle.relative_error(result.numpy(), EXPECTED) < 1e-6
    half = Conv3D(8, 3, use_bias=False, dtype="bfloat16")
    half.build(SHAPE)
    half.set_weights([KERNEL])
    result = half(x.bfloat16())
    assert result.dtype == torch.bfloat16
    assert oracle.relative_error(result.float().numpy(), EXPECTED) < 2e-2


def test_a_gradient_is_not_silently_lost(layer: Conv3D) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(X.copy()).requires_grad_()
    with pytest.raises(RuntimeError, match="computes no gradients"):
        layer(x)
    with torch.no_grad():
        assert oracle.relative_error(layer(x).numpy(), EXPECTED) < 1e-6


def test_jax_arrays(layer: Conv3D) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    result = layer(jax.numpy.asarray(X))
    assert isinstance(result, jax.Array)
    assert oracle.relative_error(np.asarray(result), EXPECTED) < 1e-6


def test_memory_of_another_device_is_refused() -> None:
    class OnDevice:
        def __dlpack__(self) -> None: ...

        def __dlpack_device__(self) -> tuple[int, int]:
            return (10, 0)  # AMD's GPUs

    with pytest.raises(ValueError, match="memory of the CPU or a CUDA GPU"):
        interchange.wrap(OnDevice())


def test_bfloat16_numpy() -> None:
    layer = Conv3D(8, 3, use_bias=False, dtype="bfloat16")
    layer.build(SHAPE)
    layer.set_weights([KERNEL])
    result = layer(X)
    assert result.dtype == ml_dtypes.bfloat16
    assert oracle.relative_error(result, EXPECTED) < 2e-2
