"""`Conv3D`: Keras's layer, argument for argument, computed by compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import Problem, problem_of
from tvm_conv3d.layer import arguments
from tvm_conv3d.layer.geometry import Geometry
from tvm_conv3d.layer.input_spec import InputSpec, not_a_tensor
from tvm_conv3d.layer.kernel_layer import KernelLayer
from tvm_conv3d.layer.objects import activations, constraints, initializers, regularizers
from tvm_conv3d.layer.objects.arrays import to_numpy
from tvm_conv3d.layer.objects.registry import Family, is_keras
from tvm_conv3d.runtime import interchange, structure, tracing
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.support.dtypes import numpy_dtype

_NDIM = 5
#: Entries of a layer's table of seen shapes; a layer fed ever new shapes starts over, not grows.
_MAX_SHAPES = 4096
#: Arguments that are objects, and which kind.
_OBJECTS: dict[str, Family] = {
    "activation": activations.FAMILY,
    "kernel_initializer": initializers.FAMILY,
    "bias_initializer": initializers.FAMILY,
    "kernel_regularizer": regularizers.FAMILY,
    "bias_regularizer": regularizers.FAMILY,
    "activity_regularizer": regularizers.FAMILY,
    "kernel_constraint": constraints.FAMILY,
    "bias_constraint": constraints.FAMILY,
}
_GEOMETRY = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups")
#: Attributes that a prepared call depends on.
_PREPARED_FROM = frozenset((*_GEOMETRY, "activation", "_dtype_policy"))
#: Keywords that Keras does not have, handed to the executor.
_EXECUTOR_OPTIONS = ("target", "accuracy", "workspace_limit")


class _Prepared(NamedTuple):
    """All that a call of a known input shape needs."""

    problem: Problem
    activation: activations.Split


class Conv3D(KernelLayer):
    """3-D convolution, with the arguments, weights and results of `keras.layers.Conv3D`.

    The layer makes its kernel (and bias) at its first call or at `build`, convolves, adds the bias and applies the
    activation. Arrays and tensors come back as what they came in: NumPy as NumPy, torch as torch. Any batch and any
    spatial size may follow the first one.

    Args:
        filters: number of output channels.
        kernel_size: int, or three ints for depth, height and width.
        strides: int or three ints. Above 1 it excludes `dilation_rate` above 1.
        padding: `"valid"` for none, or `"same"` for an output of ceil(size / stride); case does not matter.
        data_format: `"channels_last"` for (batch, depth, height, width, channels), `"channels_first"` for
            (batch, channels, depth, height, width). None takes Keras's setting, `"channels_last"` unless
            `keras.json` says otherwise.
        dilation_rate: int or three ints, the distance of the kernel's taps.
        groups: the channels and filters are split into so many independent convolutions.
        activation: name, function or object; None for none. Elementwise ones of Keras run inside the kernel, any
            other callable on its result.
        use_bias: whether a bias is added.
        kernel_initializer: name, object, config, callable or array; None for `"glorot_uniform"`.
        bias_initializer: the same; None for `"zeros"`.
        kernel_regularizer, bias_regularizer, activity_regularizer: penalties that appear in `losses`.
        kernel_constraint, bias_constraint: projections that `apply_constraints` applies.
        **kwargs: Keras's `name`, `trainable`, `dtype`, `autocast`, `lora_rank` and `lora_alpha`; and `target`, the
            machine to compile for: None for this one (its GPU, where the input lies there), "cuda" for its GPU, which
            NumPy arrays are copied to and back from; `accuracy`, when Winograd's algorithm, whose rounding is larger,
            may be taken: "default" for not where the kernel's values carry exact meaning (all of few bits, or of one
            sign in each filter), "strict" for never, "fast" for always; and `workspace_limit`, the bytes that
            intermediates (padded copies, transformed tiles) may take for each thread, 256 MiB if not given.

    Input shape:
        `channels_last`: 5D of shape (batch, depth, height, width, channels);
        `channels_first`: 5D of shape (batch, channels, depth, height, width).

    Output shape:
        The same with the new depth, height and width, and `filters` for `channels`.

    Returns:
        `activation(convolution(inputs, kernel) + bias)` in the layer's compute dtype.

    Raises:
        ValueError: an argument is out of range, with Keras's message.

    Example:

    >>> import numpy as np
    >>> x = np.random.rand(4, 10, 10, 10, 128).astype("float32")
    >>> y = Conv3D(32, 3, activation="relu")(x)
    >>> y.shape
    (4, 8, 8, 8, 32)
    """

    _caches: ClassVar[tuple[str, ...]] = (*KernelLayer._caches, "_prepared", "_cast")

    def __init__(
        self,
        filters: Any,
        kernel_size: Any,
        strides: Any = (1, 1, 1),
        padding: Any = "valid",
        data_format: Any = None,
        dilation_rate: Any = (1, 1, 1),
        groups: Any = 1,
        activation: Any = None,
        use_bias: Any = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        options = {key: kwargs.pop(key, None) for key in _EXECUTOR_OPTIONS}
        lora_rank, lora_alpha = kwargs.pop("lora_rank", None), kwargs.pop("lora_alpha", None)
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.filters = filters
        self.groups = groups
        self.kernel_size = arguments.standard_triple(kernel_size, "kernel_size")
        self.strides = arguments.standard_triple(strides, "strides")
        self.dilation_rate = arguments.standard_triple(dilation_rate, "dilation_rate")
        self.padding = arguments.standard_padding(padding)
        self.data_format = arguments.standard_data_format(data_format)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.lora_rank = lora_rank
        self.lora_alpha = lora_rank if lora_alpha is None else lora_alpha
        self.input_spec = InputSpec(min_ndim=_NDIM)
        arguments.check_filters_and_groups(filters, groups)
        arguments.check_strides_with_dilation(self.strides, self.dilation_rate)
        self._options = {key: value for key, value in options.items() if value is not None}
        self._executor = Executor(**self._options)

    def _make_caches(self) -> None:
        super()._make_caches()
        self._prepared: dict[tuple[int, ...], _Prepared] = {}
        self._cast: Weights | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in _PREPARED_FROM and "_prepared" in self.__dict__:
            self._prepared = {}

    @property
    def _geometry(self) -> Geometry:
        return Geometry(**{name: getattr(self, name) for name in _GEOMETRY})

    # Building

    def _make_weights(self, input_shape: Sequence[Any]) -> None:
        geometry = self._geometry
        self._kernel = self._add_weight(
            "kernel",
            geometry.kernel_shape(input_shape),
            _given(self.kernel_initializer, initializers.GlorotUniform),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self._bias = None
        if self.use_bias:
            # Keras documents zeros for None and draws glorot_uniform; we do as documented.
            self._bias = self._add_weight(
                "bias",
                (self.filters,),
                _given(self.bias_initializer, initializers.Zeros),
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        axis = geometry.channel_axis
        self.input_spec = InputSpec(min_ndim=_NDIM, axes={axis: int(input_shape[axis])})
        if self.lora_rank:
            self._add_lora(self.lora_rank, self.lora_alpha, "he_uniform", "zeros")

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """The output's shape for an input's; None where unknown.

        Raises:
            ValueError: wrong rank, or no room for one window.
        """
        return self._geometry.output_shape(input_shape)

    # Calling

    @tracing.untraced
    def __call__(self, inputs: Any, *, training: Any = None) -> Any:
        """Convolves.

        Args:
            inputs: 5D array or tensor; floats, ints and bools are cast to the compute dtype.
            training: ignored, for Keras's sake.

        Returns:
            A new array or tensor of the same kind.

        Raises:
            ValueError: no tensor, or of a shape that does not fit.
            TypeError: it holds no real numbers, or none at all, as what a tool traces with.
            RuntimeError: a gradient would be lost, or a tool that records operations would miss this one.
        """
        source = self._source(inputs)
        prepared = self._prepared.get(source.shape) or self._prepare(source.shape)
        output = self._forward(source, prepared)
        if self.activity_regularizer is not None:
            regularizer = self.activity_regularizer
            in_numpy = isinstance(regularizer, regularizers.Regularizer) or is_keras(regularizer)
            self._record_activity(output, lambda: interchange.wrap(output).numpy(), in_numpy)
        return output

    @tracing.untraced
    def call(self, inputs: Any) -> Any:
        """As calling the layer, without recording losses."""
        source = self._source(inputs)
        return self._forward(source, self._prepared.get(source.shape) or self._prepare(source.shape))

    def plan_for(self, input_shape: Sequence[int]) -> Plan:
        """How an input of this shape is computed: spec, algorithm, decisions, and where they came from.

        Builds the layer if need be, and compiles nothing. The first call of a further size may take a plan that
        compiles faster: :mod:`tvm_conv3d.runtime.new_sizes`.

        Raises:
            ValueError: the shape does not fit the layer.
        """
        shape = tuple(int(extent) for extent in input_shape)
        prepared = self._prepared.get(shape) or self._prepare(shape)
        return self._executor.plan_for(prepared.problem.spec, self._cast_weights().structured)

    def _source(self, inputs: Any) -> interchange.Source:
        tracing.check(inputs, self.name)
        tracing.check_gradient(inputs)
        try:
            return interchange.wrap(inputs)
        except TypeError as error:
            if isinstance(inputs, np.generic):
                return interchange.wrap(np.asarray(inputs))
            if hasattr(inputs, "shape"):
                raise
            raise not_a_tensor(inputs, self.name) from error

    def _prepare(self, shape: tuple[int, ...]) -> _Prepared:
        """Checks a shape that was not seen before, and builds the layer if need be."""
        self.input_spec.check(shape, self.name)
        if not self.built:
            with self._build_lock:
                if not self.built:
                    self.build(shape)
        self.input_spec.check(shape, self.name)
        table = self._prepared
        split = activations.split(self.activation)
        spec = self._geometry.spec(shape, self.compute_dtype, self._bias is not None, (split.fused,))
        if len(table) >= _MAX_SHAPES:
            table.clear()
        table[shape] = prepared = _Prepared(problem_of(spec), split)
        return prepared

    def _forward(self, source: interchange.Source, prepared: _Prepared) -> Any:
        output = convolution.compute(self._executor, prepared.problem, source, self._cast_weights())
        _, after, in_numpy = prepared.activation
        if after is None:
            return output
        if not in_numpy:
            return after(output)
        array = to_numpy(after(interchange.wrap(output).numpy()))
        # A view of another framework's memory may be read-only; the caller's result never is.
        return source.restore(array if array.flags.writeable else array.copy())

    def _cast_weights(self) -> Weights:
        """The weights in the compute dtype, cast once for each version of them."""
        dtype = self.compute_dtype
        version = (dtype, *(weight.version for weight in self._weights))
        cast = self._cast
        if cast is None or cast.version != version:
            bias = None if self._bias is None else self._bias.value.astype(numpy_dtype(dtype), copy=False)
            kernel = self._merged(dtype)
            self._cast = cast = Weights(kernel, bias, version, structure.structured(kernel))
        return cast

    def get_config(self) -> dict[str, Any]:
        """The arguments to make this layer again, readable by Keras.

        Raises:
            TypeError: an argument is an object without `get_config` or a name.
        """
        config = super().get_config() | {name: getattr(self, name) for name in (*_GEOMETRY, "use_bias")}
        config |= {name: family.serialize(getattr(self, name)) for name, family in _OBJECTS.items()}
        if self.lora_rank:
            config |= {"lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha}
        return config | self._options

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Conv3D:
        """The layer of a config of this class or of Keras's Conv3D; lists stand for tuples, as after JSON.

        Args:
            config: result of `get_config`.
            custom_objects: the caller's own functions and classes by name.

        Raises:
            TypeError: the config does not make a layer.
        """
        try:
            arguments_ = dict(config)
            for name in _OBJECTS.keys() & arguments_.keys():
                arguments_[name] = _OBJECTS[name].get(arguments_[name], custom_objects)
            return cls(**arguments_)
        except Exception as error:
            raise TypeError(
                f"Error when deserializing class '{cls.__name__}' using config={config}."
                f"\n\nException encountered: {error}"
            ) from error

    @classmethod
    def from_keras(cls, layer: Any) -> Conv3D:
        """This package's twin of a Keras layer, with the same arguments and copies of its weights.

        Args:
            layer: a `keras.layers.Conv3D`, built or not.

        Raises:
            TypeError: another layer.
            ValueError: a quantized layer.
        """
        if not (is_keras(layer) and any(base.__name__ == "Conv3D" for base in type(layer).__mro__)):
            raise TypeError(f"Expected a keras.layers.Conv3D. Received: {layer} (of type {type(layer)})")
        plain = (*_GEOMETRY, "use_bias", "name", "trainable", "autocast", "lora_rank", "lora_alpha")
        values = {name: getattr(layer, name) for name in plain}
        objects = {name: family.own(getattr(layer, name)) for name, family in _OBJECTS.items()}
        twin = cls(**values, **objects, dtype=layer.dtype_policy)
        if layer.built:
            weights = layer.get_weights()
            shape: list[int | None] = [None] * _NDIM
            shape[twin._geometry.channel_axis] = weights[0].shape[3] * layer.groups
            twin.build(shape)
            twin.set_weights(weights)
        return twin


def _given(initializer: Any, default: Any) -> Any:
    return default() if initializer is None else initializer


#: Keras's second name of the layer.
Convolution3D = Conv3D
