"""A layer's weights: arrays that are replaced, never changed in place, each replacement counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tvm_conv3d.layer.objects.arrays import to_numpy
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.support.locks import ForkSafeLock

#: What makes a kernel of PyTorch's, (filters, channels, depth, height, width), one of Keras's.
_FROM_TORCH = (2, 3, 4, 1, 0)


def layout_hint(shape: tuple[int, ...], received: tuple[int, ...]) -> str:
    """A sentence to end a refusal with: how an array of shape `received` comes to have `shape`; empty where unknown."""
    if len(received) != len(_FROM_TORCH) or tuple(received[axis] for axis in _FROM_TORCH) != shape:
        return ""
    return (
        " That is a kernel in the order (filters, channels, depth, height, width), PyTorch's: as a NumPy array, "
        f"it fits after `transpose{_FROM_TORCH}`."
    )


class Variable(NDArrayOperatorsMixin):
    """A named array with a version.

    Reading is safe while another thread assigns: value and version are swapped together.

    Args:
        value: the first value; its shape stays.
        dtype: name of the element type.
        name: last part of `path`.
        path: name within the layer, such as `conv3d/kernel`.
        regularizer: its penalty on the value is one of the layer's losses.
        constraint: applied by the layer's `apply_constraints`.

    Attributes:
        trainable: whether the variable is to be trained.
    """

    def __init__(
        self,
        value: Any,
        dtype: str,
        name: str,
        path: str,
        regularizer: Callable[..., Any] | None = None,
        constraint: Callable[..., Any] | None = None,
    ) -> None:
        self.dtype = dtype
        self.name = name
        self.path = path
        self.trainable = True
        self.regularizer = regularizer
        self.constraint = constraint
        self._state = (self._frozen(value), 0)
        self._lock = ForkSafeLock()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._state[0].shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def value(self) -> np.ndarray:
        """The value, read-only and not copied."""
        return self._state[0]

    @property
    def version(self) -> int:
        """Changes with every assignment."""
        return self._state[1]

    def numpy(self) -> np.ndarray:
        """A copy of the value."""
        return self.value.copy()

    def assign(self, value: Any) -> Variable:
        """Replaces the value; it is copied and cast.

        Raises:
            ValueError: another shape.
        """
        array = to_numpy(value)
        if array.shape != self.shape:
            raise ValueError(
                "The shape of the target variable and the shape of the target value in `variable.assign(value)` "
                f"must match. variable.shape={self.shape}, Received: value.shape={array.shape}."
                f"{layout_hint(self.shape, array.shape)} Target variable: {self}"
            )
        frozen = self._frozen(array)
        with self._lock:
            self._state = (frozen, self._state[1] + 1)
        return self

    def assign_add(self, value: Any) -> Variable:
        return self.assign(self.value + to_numpy(value))

    def assign_sub(self, value: Any) -> Variable:
        return self.assign(self.value - to_numpy(value))

    def _frozen(self, value: Any) -> np.ndarray:
        array = np.array(to_numpy(value), dtype=numpy_dtype(self.dtype), order="C")
        array.setflags(write=False)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.value if dtype is None else self.value.astype(dtype, copy=False)
        # NumPy's default asks for a copy only if needed; a writeable array of the weights needs one.
        return array if copy is False else array.copy()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        values = [x.value if isinstance(x, Variable) else x for x in inputs]
        return getattr(ufunc, method)(*values, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.value[index]

    def __repr__(self) -> str:
        return f"<Variable path={self.path}, shape={self.shape}, dtype={self.dtype}, value={self.value}>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state[0].setflags(write=False)
        self._lock = ForkSafeLock()
