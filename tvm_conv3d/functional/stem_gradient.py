"""The gradient of weights of a network's first convolution, where maxima of windows side by side follow it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.stem_form import Form
from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads
from tvm_conv3d.spec import CHANNELS_LAST, Triple
from tvm_conv3d.target.cpu import CpuTraits, host_target
from tvm_conv3d.target.resolve import traits_of

if TYPE_CHECKING:
    from tvm import IRModule

#: Functions that may read the gradient, one after the other; with more the dense one is faster.
_MOST_FUNCTIONS = 4

#: Vector registers beside those of sums: for an element of the input, for the gradient, and for its comparison.
_OTHER_REGISTERS = 5


def takes(arguments: ConvArguments, kernel_shape: tuple[int, ...], dtype: str) -> bool:
    """Whether :func:`weight_gradient` computes that of such a convolution, faster than from its result's gradient.

    Args:
        arguments: of the convolution.
        kernel_shape: (kernel depth, height, width, channels, filters).
        dtype: of all arrays.
    """
    plain = arguments.strides == arguments.dilation == (1, 1, 1) and arguments.groups == 1
    if not plain or arguments.data_format != CHANNELS_LAST or arguments.padding != "valid" or dtype != "float32":
        return False
    form = _form(kernel_shape)
    return len(form.functions) <= _MOST_FUNCTIONS and kernel_shape[-1] % form.lanes == 0


def weight_gradient(
    x: np.ndarray, gradient: np.ndarray, cells: np.ndarray, kernel_shape: tuple[int, ...], window: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of a convolution's kernel and bias from that of the maxima of its results' windows.

    They are those of :func:`tvm_conv3d.conv3d_weight_gradient` from what
    :func:`tvm_conv3d.functional.training.max_pool_gradient` gives, which is not made as a whole. Sums are in float32
    over a plane of windows, and in float64 over these.

    Args:
        x: the convolution's input, (batch, depth, height, width, channels) of float32.
        gradient: that of the maxima, float32.
        cells: their cells in their windows, as of :func:`tvm_conv3d.functional.training.max_pool`.
        kernel_shape: for which :func:`takes` is true.
        window: depth, height and width in cells.

    Returns:
        Both in float32, of `kernel_shape`, and (filters,).

    Raises:
        MemoryError: there is none for the sums.
    """
    form, filters = _form(kernel_shape), kernel_shape[-1]
    planes = gradient.shape[0] * gradient.shape[1]
    sums = output_pool.empty((planes, form.rows + 1, filters), np.dtype(np.float32))
    if sums.size:
        x, gradient, cells = map(np.ascontiguousarray, (x, gradient, cells))
        sizes = (*x.shape[:4], *gradient.shape[1:4], filters, *window)
        with exit_guard.in_flight():
            for code in _code(form):
                threads.run(code, *helper_code.pointers(x, gradient, cells, sums), *sizes)
    total = sums.sum(0, dtype=np.float64).astype(np.float32)
    return total[:-1].reshape(kernel_shape), total[-1].copy()


@functools.lru_cache(256)
def _form(kernel_shape: tuple[int, ...]) -> Form:
    traits = traits_of(host_target(1))
    assert isinstance(traits, CpuTraits)
    depth, height, width, channels, _ = kernel_shape
    return Form((depth, height, width), channels, traits.lanes("float32"), traits.registers - _OTHER_REGISTERS)


@functools.cache
def _code(form: Form) -> list[Any]:
    def make_module() -> IRModule:
        from tvm_conv3d.compute.llvm import stem_gradient

        return stem_gradient.module(form)

    code = helper_code.get({"name": "gradients of stems from maxima", "form": list(form)}, make_module)
    return [code.get_function(name) for name in form.functions]
