"""What every Keras layer has beside its mathematics: a name, a dtype policy, weights, losses, a config."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from tvm_conv3d.layer import arguments, dtype_policy
from tvm_conv3d.layer.geometry import check_weight_shape
from tvm_conv3d.layer.input_spec import InputSpec
from tvm_conv3d.layer.naming import automatic_name
from tvm_conv3d.layer.objects import regularizers
from tvm_conv3d.layer.objects.arrays import to_numpy
from tvm_conv3d.layer.variables import Variable, layout_hint
from tvm_conv3d.support.locks import ForkSafeLock


class Layer:
    """A layer's state.

    Args:
        activity_regularizer: penalty on the output.
        trainable: whether the weights are to be trained.
        dtype: dtype policy.
        autocast: kept for Keras's sake; float inputs are always cast to the compute dtype.
        name: a unique one is made if None.
        **kwargs: `input_shape` and `input_dim`, which Keras warns of; anything else is refused.
    """

    supports_masking: ClassVar[bool] = False
    #: Attributes, in `__dict__`, that copies of the layer make anew.
    _caches: ClassVar[tuple[str, ...]] = ("_build_lock",)

    def __init__(
        self,
        *,
        activity_regularizer: Any = None,
        trainable: bool = True,
        dtype: Any = None,
        autocast: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        name = automatic_name(type(self).__name__) if name is None else name
        arguments.check_name(name)
        self.name = name
        self._dtype_policy = dtype_policy.get_policy(dtype)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        input_shapes = [kwargs.pop(key, None) for key in ("input_dim", "input_shape")]
        if any(shape is not None for shape in input_shapes):
            warnings.warn(
                "Do not pass an `input_shape`/`input_dim` argument to a layer. The layer takes its shape from "
                "its first input, or from `build(input_shape)`.",
                stacklevel=3,
            )
        arguments.check_no_unknown(type(self).__name__, kwargs)
        arguments.check_trainable(trainable)
        self.autocast = autocast
        self.built = False
        self.path: str | None = None
        self.input_spec = InputSpec(min_ndim=1)
        self._trainable = trainable
        self._weights: list[Variable] = []
        self._activity_losses: list[Any] = []
        self._build_shape: Sequence[Any] | None = None
        self._make_caches()

    def _make_caches(self) -> None:
        """Sets what `_caches` names."""
        self._build_lock = ForkSafeLock(threading.RLock)

    # Dtypes

    @property
    def dtype_policy(self) -> dtype_policy.DTypePolicy:
        return self._dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        self._dtype_policy = dtype_policy.get_policy(value)

    @property
    def dtype(self) -> str:
        """Alias of `variable_dtype`."""
        return self.variable_dtype

    @property
    def variable_dtype(self) -> str:
        """The weights' dtype."""
        return self._dtype_policy.variable_dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype of arithmetic and output."""
        return self._dtype_policy.compute_dtype

    # Building

    def build(self, input_shape: Sequence[Any]) -> None:
        """Makes the weights for an input shape, of which only the channels must be known.

        Args:
            input_shape: five dimensions, batch first; None where unknown.

        Raises:
            ValueError: the shape does not fit the arguments, or the layer is built already.
        """
        with self._build_lock:
            if self.built:
                raise ValueError(
                    "You cannot add new elements of state (variables or sub-layers) to a layer that is already built. "
                    "All state must be created in the `__init__()` method or in the `build()` method."
                )
            try:
                self._make_weights(input_shape)
            except BaseException:
                self._weights = []
                raise
            self.path = self.name
            self._build_shape = tuple(input_shape)
            self.built = True

    def _make_weights(self, input_shape: Sequence[Any]) -> None:
        raise NotImplementedError

    def get_build_config(self) -> dict[str, Any] | None:
        """The input shape that the weights were made for, or None."""
        return None if self._build_shape is None else {"input_shape": self._build_shape}

    def build_from_config(self, config: dict[str, Any] | None) -> None:
        """Makes the weights as `get_build_config` says."""
        if config and "input_shape" in config:
            self.build(config["input_shape"])

    def _add_weight(
        self,
        name: str,
        shape: Sequence[Any],
        initializer: Callable[..., Any],
        dtype: str | None = None,
        regularizer: Any = None,
        constraint: Any = None,
    ) -> Variable:
        path = f"{self.name}/{name}"
        dtype = self.variable_dtype if dtype is None else dtype
        shape = check_weight_shape(tuple(shape), path)
        value = to_numpy(initializer(shape, dtype=dtype))
        if value.shape != shape:
            raise ValueError(
                f"The initializer of {path} must return an array of shape {shape}. Received: {value.shape}"
            )
        variable = Variable(value, dtype, name, path, regularizer, constraint)
        variable.trainable = self._trainable
        self._weights.append(variable)
        return variable

    # Weights

    @property
    def weights(self) -> list[Variable]:
        return list(self._weights)

    @property
    def trainable_weights(self) -> list[Variable]:
        return [weight for weight in self._weights if weight.trainable] if self._trainable else []

    @property
    def non_trainable_weights(self) -> list[Variable]:
        return [weight for weight in self._weights if not (self._trainable and weight.trainable)]

    variables = weights
    trainable_variables = trainable_weights
    non_trainable_variables = non_trainable_weights

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, value: Any) -> None:
        self._trainable = bool(value)
        for weight in self._weights:
            weight.trainable = self._trainable

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the weights, in the order of `weights`."""
        return [weight.numpy() for weight in self._weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replaces all weights, or none if one does not fit.

        Args:
            weights: arrays or tensors, in the order of `weights`.

        Raises:
            ValueError: another number of weights, or another shape.
        """
        if len(weights) != len(self._weights):
            raise ValueError(
                f"You called `set_weights(weights)` on layer '{self.name}' with a weight list of length "
                f"{len(weights)}, but the layer was expecting {len(self._weights)} weights."
            )
        for variable, value in zip(self._weights, weights, strict=True):
            received = tuple(value.shape)
            if variable.shape != received:
                raise ValueError(
                    f"Layer {self.name} weight shape {variable.shape} is not compatible with provided weight "
                    f"shape {received}.{layout_hint(variable.shape, received)}"
                )
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)

    def apply_constraints(self) -> None:
        """Projects the weights that have a constraint, as a Keras optimizer does after each step."""
        for weight in self._weights:
            if weight.constraint is not None:
                weight.assign(to_numpy(weight.constraint(weight.numpy())))

    def count_params(self) -> int:
        """Number of scalars in the weights.

        Raises:
            ValueError: the layer is not built.
        """
        if not self.built:
            raise ValueError(
                f"You tried to call `count_params` on layer '{self.name}', but the layer isn't built. "
                "You can build it manually via: `layer.build(input_shape)`."
            )
        return sum(math.prod(weight.shape) for weight in self._weights)

    # Losses

    @property
    def losses(self) -> list[Any]:
        """Penalties as NumPy scalars: that of the last output, then those of the trainable weights."""
        own = [
            to_numpy(weight.regularizer(weight.numpy()))[()]
            for weight in self.trainable_weights
            if weight.regularizer is not None
        ]
        return [*self._activity_losses, *own]

    def _record_activity(self, output: Any, array: Callable[[], np.ndarray], in_numpy: bool) -> None:
        """Takes the penalty of a call's output, divided by the batch size; 0 for no sample."""
        penalty = to_numpy(self.activity_regularizer(array() if in_numpy else output))
        batch = output.shape[0]
        mean = float(penalty) / batch if batch else 0.0
        self._activity_losses = [penalty.dtype.type(mean)]

    # Config

    def get_config(self) -> dict[str, Any]:
        """The arguments to make this layer again, readable by Keras."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": dtype_policy.serialize_policy(self.dtype_policy),
        }

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Not available, as in Keras's Conv3D.

        Raises:
            ValueError: the layer is not built.
            NotImplementedError: always, else.
        """
        if not self.built:
            raise ValueError(
                f"Cannot quantize a layer that isn't yet built. Layer '{self.name}' "
                f"(of type '{type(self).__name__}') is not built yet."
            )
        raise NotImplementedError(f"Layer {type(self).__name__} does not have a `quantize` method implemented.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()
