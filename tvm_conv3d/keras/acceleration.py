"""Whole models: a copy that computes the same, its convolutions by this package."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import keras

from tvm_conv3d.keras import fusion, pooled
from tvm_conv3d.keras.companions import COMPANIONS
from tvm_conv3d.keras.fusion import Absorbed, Chain, FusedConv3D
from tvm_conv3d.keras.layer import Conv3D
from tvm_conv3d.keras.pooled import Passed, PooledConvolution
from tvm_conv3d.keras.report import Report
from tvm_conv3d.spec import DTYPES

_M = TypeVar("_M", bound=keras.Model)

#: Attributes in which Keras keeps what it has compiled of a model.
_COMPILED = ("train_function", "test_function", "predict_function", "_jax_state")

#: Attributes that Keras's constructors hang on an object itself, and that call that very object.
_BOUND = ("build", "quantize")

#: Where the copy keeps the model that it was made of.
_ORIGINAL = "_tvm_conv3d_original"


def accelerate(model: _M) -> _M:
    """A copy of a model that computes the same, faster; weights and optimizer are shared, `model` is not touched.

    Every `keras.layers.Conv3D` that is a part of it, at whatever depth, is computed by this package. In the graphs of
    functional and sequential models, batch norms and activations behind a convolution are a part of its kernel in
    inference. Training goes layer by layer, but for max pools behind convolutions (:mod:`tvm_conv3d.keras.pooled`), and
    trains the weights of `model`. Max pools and batch norms are :mod:`tvm_conv3d.keras.companions` on the backends that
    have them. What is none of these is called as it is.

    Args:
        model: any, built. Its class, config and weights are those of the copy, which saves files as it does.

    Returns:
        The copy; `report` is one more attribute of it, a :class:`Report`. :func:`restore` gives `model` back.

    Raises:
        TypeError: `model` is no Keras model, or a layer of it can't be copied.
        ValueError: a convolution is not built, so that the copy could not share its weights.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"accelerate takes a keras.Model. Received: {model} (of type {type(model)})")
    copier = _Copier()
    copied: Any = copier.copy(model) if _has_convolutions(model) else copier.shallow(model)
    copied.__dict__[_ORIGINAL] = model
    if not hasattr(model, "report"):
        copied.__dict__["report"] = copier.report
    return copied


def restore(model: _M) -> _M:
    """The model that :func:`accelerate` has made `model` of, with the weights that both share.

    Raises:
        TypeError: it was not made so.
    """
    found: Any = vars(model).get(_ORIGINAL)
    if found is None:
        raise TypeError(f"restore takes what tvm_conv3d.keras.accelerate has returned. Received: {model}")
    return found


def _has_convolutions(layer: Any) -> bool:
    return any(isinstance(each, keras.layers.Conv3D) for each in layer._flatten_layers())


class _Copier:
    """Copies layers that hold convolutions; what holds none is shared."""

    def __init__(self) -> None:
        self.report = Report()
        self._copies: dict[int, Any] = {}

    def copy(self, layer: Any) -> Any:
        """A layer with all convolutions in it replaced; itself where it has none.

        Raises:
            TypeError: it can't be copied.
            ValueError: a convolution is not built.
        """
        found = self._copies.get(id(layer))
        if found is None:
            found = self._copied(layer)
            self._copies[id(layer)] = found
        return found

    def shallow(self, layer: Any) -> Any:
        """Another layer with the very attributes, but what Keras compiles.

        Raises:
            TypeError: it has no attributes of its own to copy.
        """
        try:
            made = object.__new__(type(layer))
            made.__dict__.update(vars(layer))
        except TypeError as error:
            raise TypeError(
                f"accelerate can't copy layer '{layer.name}' of type {type(layer)}: {error}. The model is as it was."
            ) from error
        for name in _BOUND:
            made.__dict__.pop(name, None)
        for name in _COMPILED:
            if name in made.__dict__:
                made.__dict__[name] = None
        return made

    def _copied(self, layer: Any) -> Any:
        if isinstance(layer, keras.layers.Conv3D):
            return self._convolution(layer, Conv3D, None)
        if type(layer) in COMPANIONS and layer.built:
            self.report.beside.append(layer.path or layer.name)
            return _of_class(COMPANIONS[type(layer)], layer)
        if not _has_convolutions(layer):
            return layer
        made = self._copies[id(layer)] = self.shallow(layer)
        if hasattr(layer, "_nodes_by_depth"):
            self._rewire(layer, made)
        else:
            for name, value in vars(layer).items():
                if name not in _BOUND:
                    made.__dict__[name] = self._in(value) if name not in _COMPILED else None
        return made

    def _rewire(self, model: Any, made: Any) -> None:
        """Has the graph of a functional model call copies; nodes and layers stay the model's."""
        instead = {id(each): self.copy(each) for each in model.operations if isinstance(each, keras.layers.Layer)}
        for chain in fusion.chains(model):
            if instead[id(chain.convolution)] is chain.convolution:
                # left alone
                continue
            instead[id(chain.convolution)] = self._convolution(chain.convolution, FusedConv3D, chain)
            instead.update((id(each), Absorbed(self.copy(each))) for each in chain.absorbed)
            self.report.fused.append(str(chain))
        for pair in pooled.pairs(model):
            convolution, pool = (instead[id(each)] for each in pair)
            if type(convolution) is Conv3D:
                instead[id(pair.convolution)] = Passed(convolution)
                instead[id(pair.pool)] = PooledConvolution(convolution, pool)
                self.report.pooled.append(str(pair))
        made.__dict__["_run_through_graph"] = functools.partial(_run_through_graph, made, instead)

    def _convolution(self, layer: Any, cls: Any, chain: Chain | None) -> Any:
        """A layer with the very variables of a Keras layer, or that itself where this package can't be it."""
        path = layer.path or layer.name
        reason = self._why_left(layer)
        if reason is not None:
            self.report.left[path] = reason
            return layer
        if not layer.built:
            raise ValueError(
                f"Layer '{path}' is not built: its weights can't be shared. Build the model, or call it once, before "
                "accelerate. The model is as it was."
            )
        made = _of_class(cls, layer)
        if chain is None:
            self.report.replaced.append(path)
        else:
            made.__dict__["_chain"] = chain
        return made

    def _why_left(self, layer: Any) -> str | None:
        if type(layer) not in (keras.layers.Conv3D, Conv3D):
            return f"{type(layer).__qualname__} is a subclass, which may compute something else"
        if layer.compute_dtype not in DTYPES:
            return f"it computes in {layer.compute_dtype}"
        if getattr(layer, "quantization_mode", None) is not None:
            return f"it is quantized: {layer.quantization_mode}"
        return None

    def _in(self, value: Any) -> Any:
        """A value with copies for the layers in it: itself where it holds none with convolutions."""
        if isinstance(value, keras.layers.Layer):
            return self.copy(value)
        if isinstance(value, dict):
            items = {key: self._in(each) for key, each in value.items()}
            return items if any(items[key] is not each for key, each in value.items()) else value
        if isinstance(value, (list, tuple)):
            parts = [self._in(each) for each in value]
            if all(part is each for part, each in zip(parts, value, strict=True)):
                return value
            named = hasattr(value, "_fields")
            return type(value)(*parts) if named else tuple(parts) if isinstance(value, tuple) else parts
        return value


def _of_class(cls: Any, layer: Any) -> Any:
    """A layer of another class with the very variables of `layer`."""
    made = cls.from_config(layer.get_config())
    # what depends on the signature of `call` is the new class's
    of_class = {name: value for name, value in vars(made).items() if name.startswith("_call")}
    made.__dict__.update({**vars(layer), **of_class})
    for name in _BOUND:
        made.__dict__.pop(name, None)
    return made


def _run_through_graph(
    model: Any, instead: dict[int, Any], inputs: Any, operation_fn: Any = lambda operation: operation, **others: Any
) -> Any:
    """As the class's own, with other operations in place of some."""

    def of_copy(operation: Any) -> Any:
        return operation_fn(instead.get(id(operation), operation))

    return type(model)._run_through_graph(model, inputs, operation_fn=of_copy, **others)
