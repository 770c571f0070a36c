"""Whole networks: a copy of a module that computes the same, its graph rewritten to this package's operators."""

from __future__ import annotations

import copy
import sys
from typing import Any, TypeVar

import torch

from tvm_conv3d.torch.graph.script.calls import ScriptCall, shared_copy
from tvm_conv3d.torch.modules import REPLACEMENTS
from tvm_conv3d.torch.norms import InstanceNorm3d
from tvm_conv3d.torch.region import Region
from tvm_conv3d.torch.report import Report

#: Characters of the bar.
_BAR = 40

_M = TypeVar("_M", bound=torch.nn.Module)


def accelerate(module: _M, *example_inputs: Any) -> _M:
    """A copy of a module that computes the same, faster; parameters and buffers are shared, `module` is not touched.

    Every `torch.nn.Conv3d` and `torch.nn.ConvTranspose3d` is replaced by this package's, wherever the module refers to
    it. In inference, whole calls are replayed as graphs in which batch norms are folded into convolutions, activations
    and residual sums are computed in their epilogues, norms, pools, upsampling and concatenations by this package, all
    with the channels last in memory. The first call of a shape runs the module by torch itself, records it, and
    compares the replay with it. What can't be recorded is called layer by layer, and so are training and all that
    needs gradients.

    A ScriptModule, and one within a module, is replayed likewise; what it computes layer by layer is torch's.

    Weights may change at any time, in any way. Parts of the module and their attributes may, too: the next call is
    recorded anew.

    Args:
        module: any; it is copied by `copy.deepcopy`, tensors excepted. Training the copy trains the module.
        example_inputs: arguments of a call, which is made here, so that the next one finds all that it needs compiled.

    Returns:
        The copy, of the module's class, with its `state_dict`; `report` is one more attribute of it, a
        :class:`Report` that tells what was replaced, fused, and left alone and why.

    Raises:
        TypeError: `module` is no `torch.nn.Module`.
        RuntimeError: the module holds tensors that torch can't copy: neither parameters, buffers nor leaves.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"accelerate takes a torch.nn.Module. Received: {type(module)}")
    result, report = _replaced(module)
    if "report" in vars(result) or not hasattr(result, "report"):
        result.__dict__["report"] = report
    own = vars(result).get("forward")
    if isinstance(result, torch.jit.ScriptModule):
        own = ScriptCall(result, "forward")
    if hasattr(result, "_orig_mod"):
        report.left[""] = "it is compiled by torch already: accelerate the module that it was made of"
    elif type(result) not in REPLACEMENTS.values():
        # a convolution alone is computed in its input's order of memory
        region = Region(result, report, None if isinstance(own, Region) else own)
        result.__dict__["forward"] = region
        region.progress = _show if example_inputs and sys.stderr.isatty() else None
    if example_inputs:
        with torch.inference_mode():
            result(*example_inputs)
    return result


def _show(done: int, count: int) -> None:
    """A line that grows, on the terminal of a user who waits."""
    bar = "#" * (_BAR * done // count)
    print(f"\rtvm_conv3d compiles: [{bar:{_BAR}}] {done}/{count}", end="\n" if done == count else "", file=sys.stderr)


def _replaced(module: _M) -> tuple[_M, Report]:
    """The copy with convolutions of this package's."""
    shared = (*module.parameters(), *module.buffers())
    # what deepcopy finds here it takes for the copy
    copies: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    replaced, left = [], {}
    scripted: set[int] = set()
    made: list[tuple[torch.nn.Module, torch.nn.Module]] = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and id(part) not in scripted:
            copies[id(part)] = shared_copy(part)
            scripted.update(map(id, part.modules()))
            left[name] = "compiled by torch.jit: in replays of whole calls its convolutions are this package's"
        elif type(part) in REPLACEMENTS:
            replacement = REPLACEMENTS[type(part)]
            made.append((part, replacement.__new__(replacement)))
            copies[id(part)] = made[-1][1]
            replaced.append(name)
        elif type(part) is torch.nn.InstanceNorm3d:
            made.append((part, InstanceNorm3d.__new__(InstanceNorm3d)))
            copies[id(part)] = made[-1][1]
        elif isinstance(part, tuple(REPLACEMENTS)) and not isinstance(part, tuple(REPLACEMENTS.values())):
            left[name] = f"{type(part).__qualname__} is a subclass, which may compute something else"
    result = copy.deepcopy(module, copies)
    for part, new in made:
        new.__dict__.update(copy.deepcopy(vars(part), copies))
    return result, Report(tuple(replaced), left)
