"""Whole networks: each convolution of torch's in a copy of a module becomes one of this package's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from tvm_conv3d.torch.modules import REPLACEMENTS


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate` did; `print(report)` tells it in lines.

    Attributes:
        replaced: names of modules, as `named_modules` gives them.
        left: names of convolutions that were left alone, and why.
    """

    replaced: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} convolutions replaced, {len(self.left)} left alone"]
        lines += [f"  replaced: {name or '(the module itself)'}" for name in self.replaced]
        return "\n".join(
            (*lines, *(f"  left: {name or '(the module itself)'}: {why}" for name, why in self.left.items()))
        )


class Accelerated(NamedTuple):
    """A module's copy, and what was done to it."""

    module: torch.nn.Module
    report: Report


def accelerate(module: torch.nn.Module) -> Accelerated:
    """A copy of a module in which this package computes the 3-D convolutions; parameters and buffers are shared.

    Every `torch.nn.Conv3d` and `torch.nn.ConvTranspose3d` is replaced, wherever the module refers to it; the given
    module is not touched. Training one trains the other.

    Args:
        module: any; it is copied by `copy.deepcopy`, tensors excepted.

    Returns:
        The copy, and a report of what was replaced and what was left alone and why.

    Raises:
        TypeError: `module` is no `torch.nn.Module`.
        RuntimeError: the module holds tensors that torch can't copy: neither parameters, buffers nor leaves.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"accelerate takes a torch.nn.Module. Received: {type(module)}")
    shared = (*module.parameters(), *module.buffers())
    # what deepcopy finds here it takes for the copy
    copies: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    replaced, left = [], {}
    made: list[tuple[torch.nn.Module, torch.nn.Module]] = []
    for name, part in module.named_modules():
        if type(part) in REPLACEMENTS:
            replacement = REPLACEMENTS[type(part)]
            made.append((part, replacement.__new__(replacement)))
            copies[id(part)] = made[-1][1]
            replaced.append(name)
        elif isinstance(part, tuple(REPLACEMENTS)) and not isinstance(part, tuple(REPLACEMENTS.values())):
            left[name] = f"{type(part).__qualname__} is a subclass, which may compute something else"
    result = copy.deepcopy(module, copies)
    for part, new in made:
        new.__dict__.update(copy.deepcopy(vars(part), copies))
    return Accelerated(result, Report(tuple(replaced), left))
