"""The constructor's arguments, checked one by one as Keras checks them, with its messages."""

from __future__ import annotations

from typing import Any

from tvm_conv3d.functional import arguments
from tvm_conv3d.layer import keras_config

_PADDINGS = ("valid", "same")


def check_name(name: Any) -> None:
    """Raises ValueError unless `name` is a string without a slash."""
    if not isinstance(name, str) or "/" in name:
        raise ValueError(
            "Argument `name` must be a string and cannot contain character `/`. "
            f"Received: name={name} (of type {type(name)})"
        )


def check_no_unknown(class_name: str, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for keywords that nothing has taken."""
    if kwargs:
        raise ValueError(f"Unrecognized keyword arguments passed to {class_name}: {kwargs}")


def check_trainable(trainable: Any) -> None:
    """Raises ValueError unless `trainable` is a bool."""
    if not isinstance(trainable, bool):
        raise ValueError(
            f"Expected `trainable` to be a boolean. Received: trainable={trainable} (of type {type(trainable)})"
        )


def standard_triple(value: Any, name: str) -> tuple[Any, Any, Any]:
    """`value` as three positive numbers: an int stands for all axes, an iterable is kept element by element.

    Elements are not converted, as in Keras: a float passes here and is refused when weights are made from it.

    Raises:
        ValueError: not an int and not three numbers, or one of them is not positive.
    """
    message = f"The `{name}` argument must be a tuple of 3 integers. Received {name}={value}"
    if isinstance(value, int):
        triple: tuple[Any, ...] = (value, value, value)
    else:
        try:
            triple = tuple(value)
        except TypeError:
            raise ValueError(message) from None
        if len(triple) != 3:
            raise ValueError(message)
        for element in triple:
            try:
                int(element)
            except (ValueError, TypeError):
                # Keras writes no space before "including" either.
                raise ValueError(f"{message}including element {element} of type {type(element)}") from None
    too_small = {element for element in triple if element <= 0}
    if too_small:
        raise ValueError(f"{message}, including values {too_small} that do not satisfy `value > 0`")
    return triple


def standard_padding(value: Any) -> Any:
    """`value` in lower case; a list or tuple passes, to be refused at build as Keras does.

    Raises:
        ValueError: a string other than `valid` and `same`.
        AttributeError: neither a string nor a list.
    """
    if isinstance(value, (list, tuple)):
        return value
    padding = value.lower()
    if padding not in _PADDINGS:
        raise ValueError(
            "The `padding` argument must be a list/tuple or one of {'same', 'valid'}. " + f"Received: {padding}"
        )
    return padding


def standard_data_format(value: Any) -> str:
    """`value` in lower case; None is Keras's configured image data format.

    Raises:
        ValueError: not a data format.
    """
    return keras_config.image_data_format() if value is None else arguments.standard_data_format(value)


def check_filters_and_groups(filters: Any, groups: Any) -> None:
    """Raises ValueError unless both are positive and the groups share the filters evenly; no filters may be given."""
    if filters is not None and filters <= 0:
        raise ValueError(
            f"Invalid value for argument `filters`. Expected a strictly positive value. Received filters={filters}."
        )
    if groups <= 0:
        raise ValueError(f"The number of groups must be a positive integer. Received: groups={groups}.")
    if filters is not None and filters % groups != 0:
        raise ValueError(
            "The number of filters must be evenly divisible by the number of groups. "
            f"Received: groups={groups}, filters={filters}."
        )


def check_strides_with_dilation(strides: tuple[Any, ...], dilation_rate: tuple[Any, ...]) -> None:
    """Raises ValueError where both exceed 1, on whatever axes."""
    if max(strides) > 1 and max(dilation_rate) > 1:
        raise ValueError(
            "`strides > 1` not supported in conjunction with `dilation_rate > 1`. "
            f"Received: strides={strides} and dilation_rate={dilation_rate}"
        )
