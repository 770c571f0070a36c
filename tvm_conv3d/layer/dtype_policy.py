"""Element types by name, and Keras's dtype policies: which one variables have and which one is computed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_conv3d.layer import keras_config
from tvm_conv3d.spec import DTYPES

_MIXED = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}


def standard_dtype(identifier: Any) -> str:
    """The float dtype's name meant by a name, `float`, or a dtype of NumPy, torch, jax or TensorFlow; None is float32.

    Raises:
        ValueError: not a float type that the layer computes in.
    """
    if identifier is None or identifier is float:
        return "float32"
    name = getattr(identifier, "name", None) or getattr(identifier, "__name__", None) or str(identifier)
    name = name.rsplit(".", 1)[-1]
    if name not in DTYPES:
        raise ValueError(f"Invalid dtype: {name}")
    return str(name)


@dataclass(frozen=True, repr=False)
class DTypePolicy:
    """Which dtype a layer's variables have and which one it computes in.

    Args:
        name: `float32`, `float64`, `float16`, `bfloat16`, `mixed_float16` or `mixed_bfloat16`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: `name` is no such policy.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                "'name' must be a string, such as 'mixed_float16'. "
                f"Received: name={self.name} (of type {type(self.name)})"
            )
        if self.name not in DTYPES and self.name not in _MIXED:
            raise ValueError(
                f"Cannot convert '{self.name}' to a mixed precision DTypePolicy. Valid policies include "
                "'mixed_float16', 'mixed_bfloat16', and the name of any float dtype such as 'float32'."
            )

    @property
    def compute_dtype(self) -> str:
        return _MIXED.get(self.name, self.name)

    @property
    def variable_dtype(self) -> str:
        return "float32" if self.name in _MIXED else self.name

    def get_config(self) -> dict[str, str]:
        return {"name": self.name}

    def __repr__(self) -> str:
        return f'<DTypePolicy "{self.name}">'


def get_policy(identifier: Any) -> DTypePolicy:
    """The policy meant by a layer's `dtype` argument.

    Args:
        identifier: a policy's or dtype's name, a dtype object, a policy of this package or of Keras, a serialized
            policy, or None for the user's default.

    Raises:
        ValueError: it means none of the supported policies.
    """
    if identifier is None:
        identifier = keras_config.dtype_policy()
    if isinstance(identifier, DTypePolicy):
        return identifier
    if isinstance(identifier, str):
        return DTypePolicy(identifier)
    if isinstance(identifier, dict):
        return _policy_from_config(identifier)
    if hasattr(identifier, "compute_dtype") and hasattr(identifier, "variable_dtype"):
        # Keras's own object; a quantized one has a name that is refused.
        return DTypePolicy(identifier.name)
    try:
        return DTypePolicy(standard_dtype(identifier))
    except ValueError:
        raise ValueError(
            "Cannot interpret `dtype` argument. Expected a string or an instance of DTypePolicy. "
            f"Received: dtype={identifier}"
        ) from None


def serialize_policy(policy: DTypePolicy) -> dict[str, Any]:
    """The policy as Keras writes it into a layer's config."""
    return {"module": "keras", "class_name": "DTypePolicy", "config": policy.get_config(), "registered_name": None}


def _policy_from_config(config: dict[str, Any]) -> DTypePolicy:
    if "class_name" not in config:
        raise ValueError(f"Unknown `config` as a `dict`, config={config}")
    if config["class_name"] not in ("DTypePolicy", "FloatDTypePolicy"):
        raise ValueError(f"Only plain and mixed dtype policies are supported. Received: dtype={config}")
    name = (config.get("config") or {}).get("name")
    return get_policy(name)
