"""The user's Keras settings: from Keras itself where it is loaded, else from its `keras.json`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST
from tvm_conv3d.support import folders

_FLOATX = ("float32", "float64", "float16", "bfloat16")


def loaded_keras() -> ModuleType | None:
    """The Keras 3 of this process, or None; never imports it."""
    keras = sys.modules.get("keras")
    # A half imported Keras and Keras 2 both lack this attribute.
    return keras if hasattr(getattr(keras, "config", None), "dtype_policy") else None


def image_data_format() -> str:
    """The data format that `data_format=None` stands for."""
    keras = loaded_keras()
    if keras is not None:
        return str(keras.config.image_data_format())
    return _setting("image_data_format", (CHANNELS_LAST, CHANNELS_FIRST))


def dtype_policy() -> str:
    """The name of the dtype policy that `dtype=None` stands for."""
    keras = loaded_keras()
    if keras is not None:
        return str(keras.config.dtype_policy().name)
    return _setting("floatx", _FLOATX)


def config_path() -> Path:
    """Where Keras keeps `keras.json`: `KERAS_HOME`, else `~/.keras`, else `/tmp/.keras` if home is read-only.

    Raises:
        ValueError: `KERAS_HOME` names the home of a user that does not exist.
    """
    home = os.environ.get("KERAS_HOME")
    if home is not None:
        return folders.expand(home, "KERAS_HOME") / "keras.json"
    base = Path(os.path.expanduser("~"))  # noqa: PTH111  (pathlib's raises where no home is known)
    return Path(base if os.access(base, os.W_OK) else "/tmp") / ".keras" / "keras.json"


def _setting(key: str, allowed: tuple[str, ...]) -> str:
    """The file's value of `key`, else the first of `allowed`; a bad file is reported, not fatal."""
    try:
        path = config_path()
    except ValueError as error:
        _warn(f"{error} Using {key}={allowed[0]!r}")
        return allowed[0]
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
        value = settings.get(key, allowed[0])
    except FileNotFoundError:
        return allowed[0]
    except (OSError, ValueError, AttributeError) as error:
        _warn(f"{path} is not a readable JSON object ({error}); using {key}={allowed[0]!r}")
        return allowed[0]
    if value not in allowed:
        _warn(f"{path} sets {key} to {value!r}, which is none of {', '.join(allowed)}; using {allowed[0]!r}")
        return allowed[0]
    return str(value)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
