"""Operators under torch's autograd: an operator itself, or in its place what can be derived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad


def derived(*arguments: Any) -> bool:
    """Whether the result of some arguments, tensors and lists of them among others, is to be derived, in any mode."""
    return in_forward_mode() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments))


def in_forward_mode() -> bool:
    """Whether tensors may have tangents, which no flag of theirs tells."""
    return forward_ad._current_level >= 0


def below(operator: Any, *arguments: Any) -> Any:
    """The operator's result by its kernel for the device, which autograd does not see."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def kernel(operator: Any, derivable: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's kernel for autograd; `derivable` takes its arguments where the result is to be derived."""

    def autograd(*arguments: Any) -> Any:
        return derivable(*arguments) if derived(*arguments) else below(operator, *arguments)

    return autograd


def in_both_modes(function: type[torch.autograd.Function], by_torch: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in reverse mode; in forward mode, for which it has no rule, torch's own functions."""

    def derivable(*arguments: Any) -> Any:
        return by_torch(*arguments) if in_forward_mode() else function.apply(*arguments)

    return derivable
