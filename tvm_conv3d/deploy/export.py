"""Compiled convolutions as files: for another machine, or to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.artifact import Artifact, check_versions, target_text
from tvm_conv3d.engine.build import compile_plan, together
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import is_cuda

#: Of the description beside the code.
_META = "meta.json"


def export(spec: Conv3DSpec, target: str | Mapping[str, Any], folder: Path, cores: int | None = None) -> list[Path]:
    """Compiles `spec` for `target` into `folder`.

    Files: for a CPU `module.o` and `module.s`; for a GPU `module.cu`, `module.cubin` (where a CUDA compiler is found)
    and `module.bin`, which the package itself loads; `schedule.py`, the scheduled function as TVMScript; `meta.json`:
    what each function takes, launches, bytes between kernels, plan and target.

    Args:
        spec: the problem.
        target: see :func:`tvm_conv3d.runtime.compatibility.requested_target`.
        folder: made where it does not exist.
        cores: threads that a CPU's plan is made for; None takes this process's.

    Returns:
        The files.

    Raises:
        ValueError: the target is unknown, or the spec has no output.
        RuntimeError: TVM or a compiler refuses it.
        OSError: a file can't be written.
    """
    if spec.empty:
        raise ValueError(f"There is nothing to compile: the output is empty. Received: {spec.key()}")
    check_versions()
    resolved = requested_target(target, cores or threads.get_num_threads())
    plan = make_plan(spec, resolved)
    artifact = compile_plan(plan, resolved, with_packing=True)
    files: dict[str, bytes] = {"schedule.py": artifact.schedule.encode()}
    about: dict[str, Any] = {
        "spec": spec.key(),
        "plan": json.loads(plan.describe()),
        "origin": plan.origin,
        "target": target_text(resolved),
        "functions": {name: function.to_json() for name, function in artifact.functions.items()},
    }
    if is_cuda(resolved):
        files |= _gpu_files(artifact, about)
    else:
        files |= {"module.o": artifact.object_code, "module.s": _assembly(plan, resolved)}
    files[_META] = json.dumps(about, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in sorted(files)]


def _gpu_files(artifact: Artifact, about: dict[str, Any]) -> dict[str, bytes]:
    image = Image.from_bytes(artifact.object_code)
    about["launches"] = {name: launches.to_json() for name, launches in image.functions.items()}
    files = {"module.bin": artifact.object_code, "module.cu": image.source.encode()}
    return {**files, "module.cubin": image.cubin} if image.cubin else files


def _assembly(plan: Plan, target: Any) -> bytes:
    import tvm

    lowered = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    functions = together(lowered, scheduling.packing_module(plan))
    return str(tvm.compile(functions, target=target).mod.inspect_source("asm")).encode()
