"""Marks: by them a schedule tells the passes where their work is.

A schedule marks a loop by an annotation, and a whole function by an annotation of the block that stores the output
(:func:`on_output`). The pass :data:`find` lists a function's marks once, in an attribute of it: a pass looks there
before it looks at any loop, and takes its marks off the list when their work is done. Where a pass works before and
after loops become vectors, it leaves a note for itself, a mark of its own (:func:`note`): an annotation does not
outlive its vectorized loop, and TVM does not substitute the variables in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, Schedule

from tvm_conv3d.compute.shared.tiled_output import STORE

#: Attribute of a function: names of the marks that await their passes.
WAITING = "tvm_conv3d.marks"

#: How the names of all marks begin, and those of all passes.
_OF_MARKS, _OF_PASSES = "tvm_conv3d.", "conv3d."

Rewrite = Callable[[tirx.PrimFunc], tirx.PrimFunc]


def on_output(sch: Schedule, mark: str) -> None:
    """Marks the function that `sch` schedules."""
    sch.annotate(sch.get_sblock(STORE), mark, 1)


def waiting(function: tirx.PrimFunc) -> frozenset[str]:
    """Names of the marks that await their passes."""
    return frozenset(map(str, function.attrs.get(WAITING) or ()))


def has_some(module: IRModule) -> bool:
    """Whether a function of `module` has marks that await their passes."""
    return any(map(waiting, _functions(module).values()))


def adding(function: tirx.PrimFunc, *names: str) -> tirx.PrimFunc:
    """`function` with more marks that await their passes."""
    return _with(function, waiting(function).union(names))


def without(loop: tirx.For, *names: str, body: Any = None) -> tirx.For:
    """`loop` without annotations of these names, and maybe with another body."""
    others = {key: value for key, value in loop.annotations.items() if key not in names}
    inside = loop.body if body is None else body
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, inside, loop.thread_binding, others)


def note(mark: str, value: Any, statement: Any, choice: int = 0) -> tirx.AttrStmt:
    """`statement` with a note for a pass that finds it as vectors.

    Args:
        mark: its name.
        value: an expression of variables around the statement.
        statement: what it is about.
        choice: which of several ways the pass is to take, known to the schedule.
    """
    return tirx.AttrStmt(tirx.const(choice, "int32"), mark, value, statement)


def module_pass(name: str, *names: str) -> Callable[[Callable[[IRModule], IRModule]], Any]:
    """Decorator: a rewrite of modules as the pass `conv3d.<name>`.

    Args:
        name: of the pass, without the prefix.
        names: marks whose work it does: modules without any of them go through as they are. All modules are rewritten
            where none are named.
    """

    def as_pass(rewrite: Callable[[IRModule], IRModule]) -> Any:
        def on_module(module: IRModule, context: ir.transform.PassContext) -> IRModule:
            if not names:
                return rewrite(module)
            if not any(waiting(function).intersection(names) for function in _functions(module).values()):
                return module
            return each(rewrite(module), lambda function: _with(function, waiting(function).difference(names)))

        return ir.transform.module_pass(on_module, opt_level=0, name=_OF_PASSES + name)

    return as_pass


def function_pass(name: str, *names: str) -> Callable[[Rewrite], Any]:
    """Decorator: the same of a rewrite of functions, for those with one of the marks `names`."""

    def as_pass(rewrite: Rewrite) -> Any:
        def on_function(function: tirx.PrimFunc) -> tirx.PrimFunc:
            return rewrite(function) if waiting(function).intersection(names) else function

        return module_pass(name, *names)(lambda module: each(module, on_function))

    return as_pass


def each(module: IRModule, rewrite: Rewrite) -> IRModule:
    """`module` with its functions rewritten."""
    rewritten = {var: rewrite(function) for var, function in _functions(module).items()}
    return IRModule({**dict(module.functions), **rewritten}, attrs=module.attrs)


@module_pass("find_marks")
def find(module: IRModule) -> IRModule:
    """Lists the marks of each scheduled function."""
    return each(module, lambda function: adding(function, *_marks_in(function)))


def _marks_in(function: tirx.PrimFunc) -> set[str]:
    found: set[str] = set()

    def on_annotated(part: tirx.For | SBlock) -> None:
        found.update(name for name in map(str, part.annotations) if name.startswith(_OF_MARKS))

    tvm_ffi.structural_walk(function.body, ((tirx.For, on_annotated), (SBlock, on_annotated)))
    return found


def _functions(module: IRModule) -> dict[Any, tirx.PrimFunc]:
    return {var: function for var, function in module.functions.items() if isinstance(function, tirx.PrimFunc)}


def _with(function: tirx.PrimFunc, names: Iterable[str]) -> tirx.PrimFunc:
    """`function` with these marks on its list, and no list where there are none."""
    in_order = sorted(names)
    if in_order:
        return function.with_attr(WAITING, in_order)
    return function.without_attr(WAITING) if WAITING in function.attrs else function
