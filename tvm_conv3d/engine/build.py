"""From a plan to machine code."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_conv3d.compute.shared.argument import PACK, Function
from tvm_conv3d.engine import scheduling, workspace
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.artifact import MAIN, Artifact, check_versions
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.description import Target

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.runtime import Module


#: LLVM's level of optimization for the function `pack` alone. Its loops are over vectors as they are declared: at the
#: usual level it is compiled five times as long, and runs 0.06 s in place of 0.08 s on the largest kernels (512 x 512
#: filters of 3x3x3 for Winograd; two threads of a Zen 4, TVM 0.27.0, 2026-11-26).
_PACKING_LEVEL = 0


def compile_plan(plan: Plan, target: Target, with_packing: bool = False) -> Artifact:
    """Compiles `plan` for `target`.

    Args:
        plan: what to compile.
        target: for what.
        with_packing: the function `pack` lies in the same code, as it always does for a GPU, if the plan takes weights.
            Else it is compiled faster by :func:`compile_packing`, and serves other plans as well.

    Raises:
        RuntimeError: the installed TVM is another version, or TVM can't compile the plan.
    """
    check_versions()
    import tvm

    module = scheduling.scheduled_module(plan, target)
    functions = {MAIN: Function(named(plan.algorithm).declare(plan.spec, plan.variant).arguments)}
    beside = tvm.IRModule()
    if (with_packing or is_cuda(target)) and functions[MAIN].of("weights"):
        beside = scheduling.packing_module(plan)
        functions[PACK] = Function(scheduling.packing_arguments(beside))
    if is_cuda(target):
        image = compile_image(together(module, beside), target)
        between_kernels = sum(image.functions[MAIN].workspaces.values())
        return Artifact(image.to_bytes(), functions, module.script(), Workspace(between_kernels, 0))
    small = scheduling.with_small_buffers(module)
    lowered, done = scheduling.lowered(small, target)
    lowered = together(lowered, scheduling.with_small_buffers(beside))
    with tvm.transform.PassContext(disabled_pass=done):
        code = object_code(tvm.compile(lowered, target=target.as_tvm()).mod)
    return Artifact(_checked(code, plan, target), functions, module.script(), workspace.of_small_buffers(small))


def compile_packing(plan: Plan, target: Target) -> Artifact:
    """Compiles the function `pack` of `plan` alone, for a CPU.

    Raises:
        RuntimeError: the installed TVM is another version, or TVM can't compile it.
    """
    check_versions()
    import tvm

    pack = scheduling.packing_module(plan)
    quick = tvm.target.Target({**json.loads(target.text), "opt-level": _PACKING_LEVEL})
    code = object_code(tvm.compile(pack, target=quick).mod)
    functions = {PACK: Function(scheduling.packing_arguments(pack))}
    return Artifact(_checked(code, plan, target), functions, pack.script())


def _checked(code: bytes, plan: Plan, target: Target) -> bytes:
    if not code:
        raise RuntimeError(f"LLVM wrote no code for {plan.spec.key()} on {target}.")
    return code


def together(first: IRModule, second: IRModule) -> IRModule:
    """One module with the functions of both."""
    module = first.clone()
    module.update(second)
    return module


def compile_image(module: IRModule, target: Target) -> Image:
    """Scheduled functions compiled for a GPU, as source only where no CUDA compiler is found.

    Raises:
        RuntimeError: TVM or the compiler refuses it.
    """
    code = lower(module, target)
    arch = target.arch
    try:
        cubin = toolkit.compile_cubin(code.source, arch)
    except toolkit.NoCompilerError:
        cubin = b""
    return Image(arch, code.source, code.functions, cubin)


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
