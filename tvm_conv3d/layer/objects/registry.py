"""How a name, class, instance, dict or callable becomes an object of Keras's kind, and an object becomes a dict."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from tvm_conv3d.layer.keras_config import loaded_keras
from tvm_conv3d.layer.naming import snake_case


def is_keras(obj: Any) -> bool:
    """Whether `obj` is Keras's own function, or an instance of a class that is or descends from Keras's."""
    if inspect.isroutine(obj):
        return _is_keras_module(getattr(obj, "__module__", None))
    return any(_is_keras_module(cls.__module__) for cls in type(obj).__mro__)


class Family:
    """One kind of object: its classes or functions by name.

    Args:
        kind: in messages, such as `initializer`.
        module: where Keras has them, such as `keras.initializers`.
        objects: classes and functions by every name that Keras knows them by.
    """

    def __init__(self, kind: str, module: str, objects: Mapping[str, Any]) -> None:
        self.kind = kind
        self.module = module
        self.objects = objects

    def get(self, identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        """The object meant by `identifier`; Keras's own objects and plain callables are kept as they are.

        Args:
            identifier: None, a name, a serialized object, a class, an instance or a callable.
            custom_objects: the caller's own classes and functions by name.

        Returns:
            A callable, or None for None.

        Raises:
            ValueError: it means nothing.
            TypeError: a serialized object does not fit its class.
        """
        if identifier is None:
            return None
        obj = identifier
        if isinstance(identifier, dict):
            obj = self.deserialize(identifier, custom_objects)
        elif isinstance(identifier, str):
            obj = _custom(custom_objects, identifier) or self._named(identifier)
        if inspect.isclass(obj):
            obj = obj()
        if callable(obj):
            return obj
        raise ValueError(f"Could not interpret {self.kind} identifier: {identifier}")

    def deserialize(self, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """The object of a config dict, in Keras's long or short form; None where nothing has that name.

        Args:
            config: `{"class_name": ..., "config": ...}`, as Keras writes it.
            custom_objects: the caller's own classes and functions by name.

        Raises:
            ValueError: no config of an object, or one that would run stored code.
            TypeError: the class refuses its config, or was written as unlocatable.
        """
        if "class_name" not in config:
            raise ValueError(f"Unknown `config` as a `dict`, config={config}")
        name, inner = config["class_name"], config.get("config")
        if name == "__lambda__":
            raise ValueError(
                f"A stored lambda is code, which this package does not load. Pass the function itself as {self.kind}."
            )
        registered = config.get("registered_name")
        if name in ("function", "builtin_function_or_method"):
            return _custom(custom_objects, inner, registered) or self._named(inner, registered)
        found = _custom(custom_objects, registered, name)
        if found is None and config.get("module", "") is None:
            raise TypeError(
                f"Cannot deserialize object of type `{name}`. If `{name}` is a custom class, please register it "
                "using the `@keras.saving.register_keras_serializable()` decorator."
            )
        # A foreign module's class is not ours though it may have the same name.
        if found is None and _is_keras_module(config.get("module", self.module)):
            found = self._named(name)
            if found is None and "module" in config:
                return _deserialized_by_keras(config)
        return _instance(found, inner or {}) if inspect.isclass(found) else found

    def serialize(self, obj: Any) -> Any:
        """The config dict of an object, which Keras reads too.

        Raises:
            TypeError: the object has neither `get_config` nor a name.
        """
        if obj is None:
            return None
        if self._owns(obj):
            return _config(self.module, type(obj).__name__, obj.get_config(), None)
        keras = loaded_keras()
        if keras is not None and is_keras(obj):
            return keras.saving.serialize_keras_object(obj)
        cls = type(obj)
        if hasattr(obj, "get_config"):
            return _config(cls.__module__, cls.__name__, obj.get_config(), _registered_name(cls))
        if hasattr(obj, "__name__"):
            return _config("builtins", cls.__name__, _registered_name(obj), cls.__name__)
        raise TypeError(
            f"Cannot serialize object {obj} of type {cls}. "
            "To be serializable, a class must implement the `get_config()` method."
        )

    def own(self, obj: Any) -> Any:
        """This package's equivalent of Keras's own object, else `obj` itself."""
        twin = self.objects.get(type(obj).__name__)
        if is_keras(obj) and inspect.isclass(twin) and type(obj).__module__.startswith("keras."):
            return _instance(twin, obj.get_config())
        return obj

    def _owns(self, obj: Any) -> bool:
        return self.objects.get(type(obj).__name__) is type(obj)

    def _named(self, *names: Any) -> Any:
        return next((self.objects[name] for name in names if isinstance(name, str) and name in self.objects), None)


def by_names(classes: Iterable[type]) -> dict[str, type]:
    """Classes under their names in camel and in snake case."""
    classes = tuple(classes)
    return {cls.__name__: cls for cls in classes} | {snake_case(cls.__name__): cls for cls in classes}


def _custom(custom_objects: Mapping[str, Any] | None, *names: Any) -> Any:
    """The caller's own object of one of `names`, else one registered with Keras."""
    keras = loaded_keras()
    for name in names:
        if isinstance(name, str):
            found = (custom_objects or {}).get(name)
            if found is None and keras is not None:
                found = keras.saving.get_registered_object(name)
            if found is not None:
                return found
    return None


def _config(module: str, class_name: str, config: Any, registered_name: str | None) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}


def _registered_name(obj: Any) -> str:
    keras = loaded_keras()
    return str(keras.saving.get_registered_name(obj) if keras is not None else obj.__name__)


def _instance(cls: Any, config: dict[str, Any]) -> Any:
    try:
        return cls.from_config(config)
    except TypeError as error:
        raise TypeError(
            f"{cls} could not be deserialized from config={config}. Exception encountered: {error}"
        ) from error


def _deserialized_by_keras(config: dict[str, Any]) -> Any:
    """A class that only Keras has (a layer used as activation, say), if Keras is installed and names it."""
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise ValueError(
            f"{config['class_name']} is Keras's own class, and Keras is not installed: {config}"
        ) from error
    return keras.saving.deserialize_keras_object(config)


def _is_keras_module(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] == "keras"
