"""Compiled convolutions as files: for another machine, for programs without Python, or to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_conv3d.compute.shared.argument import PACK, Function
from tvm_conv3d.deploy import functions
from tvm_conv3d.deploy.header import header
from tvm_conv3d.engine.artifact import check_versions
from tvm_conv3d.engine.build import compile_plan
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.description import Target

#: Of the description beside the code.
_META = "meta.json"


def export(
    spec: Conv3DSpec, target: str | Mapping[str, Any], folder: Path, cores: int | None = None, name: str = ""
) -> list[Path]:
    """Compiles `spec` for `target` into `folder`.

    Files: for a CPU `module.o`, `module.h` and `module.s`; for a GPU `module.cu`, `module.cubin` (where a CUDA compiler
    is found) and `module.bin`, which the package itself loads; `schedule.py`, the scheduled functions as TVMScript;
    `meta.json`: what each function takes and which ones to call, launches, bytes between kernels, plan and target.

    NaN and infinity reach exactly the outputs whose window holds them, and sums overflow as they do by the definition:
    where a CPU's plan is not exact, the module holds an exact one beside it, and takes that where need be.

    Args:
        spec: the problem.
        target: see :func:`tvm_conv3d.runtime.compatibility.requested_target`.
        folder: made where it does not exist.
        cores: threads that a CPU's plan is made for; None takes this process's.
        name: an identifier, with which a CPU's functions and calls begin: needed where a program holds several modules.

    Returns:
        The files.

    Raises:
        ValueError: the target is unknown, the spec has no output, or the name is no identifier or for a GPU.
        RuntimeError: TVM or a compiler refuses it.
        OSError: a file can't be written.
    """
    if spec.empty:
        raise ValueError(f"There is nothing to compile: the output is empty. Received: {spec.key()}")
    check_versions()
    resolved = requested_target(target, cores or threads.get_num_threads())
    if is_cuda(resolved) and name:
        raise ValueError(f"Only a CPU's functions take a name: a GPU loads each module apart. Received: name={name!r}")
    plan = make_plan(spec, resolved)
    about = {"spec": spec.key(), **_about(plan), "target": resolved.text}
    files = _gpu_files(plan, resolved, about) if is_cuda(resolved) else _cpu_files(plan, resolved, about, name)
    files[_META] = json.dumps(about, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in sorted(files)]


def _about(plan: Plan) -> dict[str, Any]:
    return {"plan": json.loads(plan.describe()), "origin": plan.origin}


def _gpu_files(plan: Plan, target: Target, about: dict[str, Any]) -> dict[str, bytes]:
    """The files but for the description, to which it adds."""
    artifact = compile_plan(plan, target)
    image = Image.from_bytes(artifact.object_code)
    _describe(artifact.functions, about)
    about["launches"] = {name: launches.to_json() for name, launches in image.functions.items()}
    files = {"module.bin": artifact.object_code, "module.cu": image.source.encode()}
    files["schedule.py"] = artifact.schedule.encode()
    return {**files, "module.cubin": image.cubin} if image.cubin else files


def _cpu_files(plan: Plan, target: Target, about: dict[str, Any], name: str) -> dict[str, bytes]:
    """The files but for the description, to which it adds."""
    from tvm_conv3d.deploy.standalone import compile_standalone

    prefix = functions.prefix_of(name)
    exact = None if plan.exact else make_plan(plan.spec, target, exact=True)
    if exact is not None:
        about["exact"] = _about(exact)
    module = compile_standalone(plan, exact, target, prefix)
    _describe(module.functions, about, prefix)
    return {
        "module.o": module.object_code,
        "module.s": module.assembly.encode(),
        "module.h": header(plan.spec, about["target"], module.functions, module.assembly, name).encode(),
        "schedule.py": module.schedule.encode(),
    }


def _describe(found: Mapping[str, Function], about: dict[str, Any], prefix: str = "") -> None:
    about["entry"] = {"pack": prefix + PACK, "convolve": prefix + functions.entry_of(found)}
    about["functions"] = {prefix + name: function.to_json() for name, function in found.items()}
