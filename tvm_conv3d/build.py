"""From a plan to machine code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_conv3d import scheduling, workspace
from tvm_conv3d.artifact import ENTRY, Artifact, check_versions
from tvm_conv3d.cuda.image import compile_image
from tvm_conv3d.plan import Plan
from tvm_conv3d.targets import is_cuda
from tvm_conv3d.workspace import Workspace

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.runtime import Module
    from tvm.target import Target


def compile_plan(plan: Plan, target: Target) -> Artifact:
    """Compiles `plan` for `target`.

    Raises:
        RuntimeError: the installed TVM is another version, or TVM can't compile the plan.
    """
    check_versions()
    import tvm

    module = scheduling.scheduled_module(plan, target)
    if is_cuda(target):
        image = compile_image(module, target)
        return Artifact(image.to_bytes(), _shapes(module), module.script(), Workspace(sum(image.workspaces), 0))
    small = scheduling.with_small_buffers(module)
    lowered, done = scheduling.lowered(small, plan, target)
    with tvm.transform.PassContext(disabled_pass=done):
        code = object_code(tvm.compile(lowered, target=target).mod)
    if not code:
        raise RuntimeError(f"LLVM wrote no code for {plan.spec.key()} on {target}.")
    return Artifact(code, _shapes(module), module.script(), workspace.of_small_buffers(small))


def _shapes(module: IRModule) -> tuple[tuple[int, ...], ...]:
    """Shapes of the arguments of the function that is compiled."""
    return tuple(tuple(int(extent) for extent in argument.ty.shape) for argument in module[ENTRY].params)


def object_code(module: Module) -> bytes:
    """The module as an object file; LLVM writes files only, and ends the process when a disk is full."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("module.o")
        try:
            module.write_to_file(f"/proc/self/fd/{number}", "o")
            return os.pread(number, os.fstat(number).st_size, 0)
        finally:
            os.close(number)
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        path = Path(folder) / "module.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()
