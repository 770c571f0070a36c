"""From a plan to machine code."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_conv3d import workspace
from tvm_conv3d.plan import Plan, algorithm_of, schedule
from tvm_conv3d.targets import is_cuda

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.runtime import Module
    from tvm.target import Target

#: Versions that were tested together; others crash or refuse (apache-tvm-ffi 0.1.15 breaks MetaSchedule, say).
PINNED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1", "apache-tvm-ffi-orcjit": "0.1.3"}

#: Name of the compiled function.
ENTRY = "main"


@dataclass(frozen=True)
class Artifact:
    """Compiled code of one plan.

    Attributes:
        object_code: a relocatable object file for the target; for a GPU a :class:`tvm_conv3d.cuda.image.Image`.
        shapes: shapes of input, packed weights, packed bias, output and maybe flags, as the code sees them.
        schedule: the scheduled function as TVMScript, for people.
        workspace: bytes of its intermediates: once a call, and once for each thread.
    """

    object_code: bytes
    shapes: tuple[tuple[int, ...], ...]
    schedule: str
    workspace: tuple[int, int] = (0, 0)


@functools.cache
def check_versions() -> None:
    """Makes sure that the installed TVM is the one whose behaviour this package was tested with.

    Raises:
        RuntimeError: another version is installed; says which and how to get the right ones.
    """
    found = {name: metadata.version(name) for name in PINNED}
    wrong = [f"{name} {found[name]} (needs {version})" for name, version in PINNED.items() if found[name] != version]
    if wrong:
        pins = " ".join(f"{name}=={version}" for name, version in PINNED.items())
        raise RuntimeError(f"tvm_conv3d can't run with {', '.join(wrong)}: they fail together. Run: pip install {pins}")


def scheduled_module(plan: Plan, target: Target) -> IRModule:
    """The plan's declaration with its loops, ready to compile."""
    algorithm = algorithm_of(plan, str(target.kind.name))
    return algorithm.finish(schedule(plan, algorithm)[0].mod, plan.spec)


def compile_plan(plan: Plan, target: Target) -> Artifact:
    """Compiles `plan` for `target`.

    Raises:
        RuntimeError: the installed TVM is another version, or TVM can't compile the plan.
    """
    check_versions()
    import tvm

    module = scheduled_module(plan, target)
    if is_cuda(target):
        from tvm_conv3d.cuda.image import compile_image

        image = compile_image(module, target)
        return Artifact(image.to_bytes(), _shapes(module), module.script(), (sum(image.workspaces), 0))
    from tvm_conv3d.schedules.llvm.rewrites import lower, pipeline

    small = lower.to_small_buffers(module)
    lowered = pipeline.lowered(small, target)
    # in plain loops the pass finds what it did not see in blocks
    with tvm.transform.PassContext(disabled_pass=lower.DONE if lowered is small else ()):
        code = object_code(tvm.compile(lowered, target=target).mod)
    if not code:
        raise RuntimeError(f"LLVM wrote no code for {plan.spec.key()} on {target}.")
    return Artifact(code, _shapes(module), module.script(), astuple(workspace.of_small_buffers(small)))


def lowered_module(module: IRModule, plan: Plan, target: Target) -> IRModule:
    """The scheduled function of `plan` as TVM's compiler takes it."""
    if is_cuda(target):
        return module
    from tvm_conv3d.schedules.llvm.rewrites import lower, pipeline

    return pipeline.lowered(lower.to_small_buffers(module), target)


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


def artifact_key(plan: Plan, target: Target) -> str:
    """Hash of all that the machine code depends on: spec, plan, target, versions, and the sources that made it."""
    return key_of({"spec": plan.spec.key(), "plan": plan.describe(), "target": target_text(target)})


def key_of(identity: Mapping[str, object]) -> str:
    """Hash of `identity`, the versions, and the sources of declarations and schedules."""
    identity = {**identity, "versions": {**_versions(), "sources": source_hash()}}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def target_text(target: Target) -> str:
    """The target as one line, equal for equal targets."""
    return json.dumps(_plain(target.export()), sort_keys=True)


@functools.cache
def source_hash() -> str:
    """Hash of the sources of declarations and schedules."""
    from tvm_conv3d import compute, schedules

    digest = hashlib.sha256()
    for package in (compute, schedules):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in (*PINNED, "tvm-conv3d")}


def _plain(value: object) -> object:
    """TVM's containers as JSON's."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    return [str(v) for v in value]  # type: ignore[attr-defined]
