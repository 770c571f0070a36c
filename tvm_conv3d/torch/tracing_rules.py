"""What Dynamo is told of torch's functions, so that it breaks no graph where a network only asks for a type."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch._dynamo import trace_rules, variables


def trace_type_tests() -> None:
    """Lets Dynamo trace `torch.jit.isinstance(value, torch.Tensor)`; a second call does nothing.

    Dynamo skips that function, as it loops over containers, and breaks the graph at it: volumes between the two parts
    are copied to torch's order of memory and back. MONAI's BasicUNet asks so before each concatenation. Where Dynamo
    has another rule for it than to skip it, that stays.
    """
    # its rules are no public interface: without them graphs break as before
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        rules = trace_rules.get_torch_obj_rule_map()
        if rules.get(torch.jit.isinstance) is variables.SkipFunctionVariable:
            del rules[torch.jit.isinstance]
            torch.compiler.substitute_in_graph(torch.jit.isinstance)(_is_instance)


def _is_instance(obj: Any, target_type: Any) -> bool:
    """What Dynamo traces in the place of `torch.jit.isinstance`; it breaks the graph at all but tensors, as before."""
    if target_type is torch.Tensor:
        return isinstance(obj, torch.Tensor)
    return torch._jit_internal._isinstance(obj, target_type)
