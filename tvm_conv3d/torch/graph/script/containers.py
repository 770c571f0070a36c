"""What scripts do to their lists, dicts, tuples and strings: operators that know no element type from Python."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


def _append(values: list[Any], value: Any) -> list[Any]:
    values.append(value)
    return values


def _extend(values: list[Any], more: list[Any]) -> list[Any]:
    values.extend(more)
    return values


def _set_item(values: Any, key: Any, value: Any) -> Any:
    values[key] = value
    return values


def _slice(values: Any, start: int | None, stop: int | None, step: int) -> Any:
    return values[start:stop:step]


#: Operators that leave their arguments as they are, by name.
READING: dict[str, Callable[..., Any]] = {
    "aten::len": len,
    "aten::__getitem__": operator.getitem,
    "aten::__contains__": operator.contains,
    "aten::add": operator.add,
    "aten::mul": operator.mul,
    "aten::slice": _slice,
    "aten::list": list,
    "aten::copy": lambda values: values.copy(),
    "aten::keys": lambda values: list(values.keys()),
    "aten::values": lambda values: list(values.values()),
    "aten::items": lambda values: list(values.items()),
    "aten::get": lambda values, key, default=None: values.get(key, default),
}

#: Operators that change their first argument, by name.
CHANGING: dict[str, Callable[..., Any]] = {
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::add_": _extend,
    "aten::_set_item": _set_item,
    "aten::insert": lambda values, place, value: values.insert(place, value),
    "aten::pop": lambda values, *key: values.pop(*key),
    "aten::reverse": lambda values: values.reverse(),
    "aten::clear": lambda values: values.clear(),
    "aten::Delete": operator.delitem,
}

#: Types of what these operators take.
CONTAINERS = (list, dict, tuple, str)
