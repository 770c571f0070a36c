"""A CPU's convolution that needs no code beside: where its plan is not exact, it falls back to an exact one by itself.

:mod:`tvm_conv3d.deploy.functions` tells the functions of the module. Those that call others are declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder

from tvm_conv3d.compute.shared.argument import PACK, Argument, Function
from tvm_conv3d.deploy.functions import CONVOLVE, EXACT, PACK_EXACT, PACK_MAIN, of_exact, with_fallback
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.artifact import MAIN, check_versions
from tvm_conv3d.engine.build import object_code
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.target.description import Target


@dataclass(frozen=True)
class Standalone:
    """A compiled module.

    Attributes:
        object_code: a relocatable object file for the target.
        assembly: the same, to be read.
        functions: what each function takes, by its name without the prefix.
        schedule: the scheduled convolutions as TVMScript, for people.
    """

    object_code: bytes
    assembly: str
    functions: Mapping[str, Function]
    schedule: str


def compile_standalone(plan: Plan, exact: Plan | None, target: Target, prefix: str = "") -> Standalone:
    """Compiles `plan` for a CPU, with its packing.

    Args:
        plan: what to compile.
        exact: the plan to fall back to, an exact one of the same spec; None where `plan` is exact.
        target: for what.
        prefix: of the functions' names in the module.

    Raises:
        RuntimeError: the installed TVM is another version, or TVM can't compile a plan.
    """
    check_versions()
    plans = {MAIN: plan} if exact is None else {MAIN: plan, EXACT: exact}
    scheduled = {name: scheduling.scheduled_module(each, target) for name, each in plans.items()}
    bodies = {name: scheduling.lowered_module(module, target)[MAIN] for name, module in scheduled.items()}
    packing = {name: scheduling.packing_module(each) for name, each in plans.items()}
    taken = {name: _arguments(each) for name, each in plans.items()}
    packed = {name: Function(scheduling.packing_arguments(module)) for name, module in packing.items()}
    if exact is None:
        functions = {PACK: packed[MAIN], **taken}
        bodies[PACK] = packing[MAIN][PACK]
    else:
        functions = with_fallback(plan.spec, taken[MAIN], packed[MAIN], taken[EXACT], packed[EXACT])
        bodies |= {PACK_MAIN: packing[MAIN][PACK], PACK_EXACT: packing[EXACT][PACK]}
        bodies |= {PACK: _pack(functions, prefix), CONVOLVE: _convolve(functions, prefix)}
    module = tvm.compile(_module(bodies, prefix), target=target.as_tvm()).mod
    script = _module({name: module[MAIN] for name, module in scheduled.items()}).script()
    return Standalone(object_code(module), str(module.inspect_source("asm")), functions, script)


def _arguments(plan: Plan) -> Function:
    return Function(named(plan.algorithm).declare(plan.spec, plan.variant).arguments)


def _module(bodies: Mapping[str, PrimFunc], prefix: str = "") -> IRModule:
    """The functions, under their names."""
    return IRModule({prefix + name: body.with_attr("global_symbol", prefix + name) for name, body in bodies.items()})


def _pack(functions: Mapping[str, Function], prefix: str) -> PrimFunc:
    exact = functions[PACK_EXACT]
    with IRBuilder() as made, builder.prim_func():
        given = _parameters(functions[PACK])
        _call(prefix + PACK_MAIN, functions[PACK_MAIN], given)
        _call(prefix + PACK_EXACT, exact, {**given, **{a.name: given[of_exact(a.name)] for a in exact.of("output")}})
    return made.get()


def _convolve(functions: Mapping[str, Function], prefix: str) -> PrimFunc:
    main, exact = functions[MAIN], functions[EXACT]
    with IRBuilder() as made, builder.prim_func():
        given = _parameters(functions[CONVOLVE])
        flags = {a.name: _allocated(a.name, a.shape, a.dtype) for a in main.of("flags")}
        _call(prefix + MAIN, main, {**given, **flags})
        doubt = _allocated("doubt", (1,), "int32")
        builder.buffer_store(doubt, 0, [0])
        for argument in main.of("flags"):
            _find_doubt(doubt, flags[argument.name], argument)
        with builder.If(doubt[0] != 0), builder.Then():
            weights = {a.name: given[of_exact(a.name)] for a in exact.of("weights", "bias")}
            _call(prefix + EXACT, exact, {**given, **weights})
    return made.get()


def _find_doubt(doubt: Any, flags: Any, argument: Argument) -> None:
    """Stores 1 in `doubt` where a flag is not finite."""
    with builder.grid(*argument.shape) as index:
        # NaN fulfils no comparison, so that TVM must not be given one to negate
        finite = tirx.abs(flags[tuple(index)]) < tirx.infinity(argument.dtype)
        builder.buffer_store(doubt, tirx.max(doubt[0], tirx.Select(finite, 0, 1)), [0])


def _parameters(function: Function) -> dict[str, Any]:
    """The buffers of the function that is being made, at any address that suits their elements."""
    builder.func_attr({"tirx.noalias": True})
    found = {}
    for argument in function.arguments:
        buffer = builder.buffer(argument.shape, argument.dtype, align=np.dtype(argument.dtype).itemsize)
        found[argument.name] = builder.arg(argument.name, buffer)
    return found


def _allocated(name: str, shape: Sequence[int], dtype: str) -> Any:
    buffer = builder.alloc_buffer(shape, dtype)
    IRBuilder.name(name, buffer)
    return buffer


def _call(name: str, function: Function, buffers: Mapping[str, Any]) -> None:
    """Calls a function of the module, which sees buffers in shapes of its own; where it fails, so does the caller."""
    tensors = [_tensor(buffers[argument.name], argument) for argument in function.arguments]
    builder.evaluate(tirx.call_cpacked(name, *tensors))


def _tensor(buffer: Any, argument: Argument) -> Any:
    shape = tirx.tvm_stack_make_shape(*(tirx.const(extent, "int64") for extent in argument.shape))
    return tirx.tvm_stack_make_array(buffer.data, shape, 0, len(argument.shape), argument.dtype, 0)
