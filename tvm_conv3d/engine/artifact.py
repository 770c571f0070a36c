"""What is compiled of a plan, and its identity: all that the machine code depends on."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from tvm_conv3d.compute.shared.argument import Function
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.workspace import NO_WORKSPACE, Workspace
from tvm_conv3d.support import notes
from tvm_conv3d.target.description import Target

#: Versions that were tested together; others crash or refuse (apache-tvm-ffi 0.1.15 breaks MetaSchedule, say).
PINNED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1", "apache-tvm-ffi-orcjit": "0.1.3"}

#: Name of the compiled function that convolves.
MAIN = "main"


#: Modules and packages that have a part in compiling: whatever is imported between a spec and its machine code.
COMPILING = (
    "tvm_conv3d.compute",
    "tvm_conv3d.engine",
    "tvm_conv3d.runtime.helper_code",
    "tvm_conv3d.schedules",
    "tvm_conv3d.spec",
    "tvm_conv3d.support",
    "tvm_conv3d.target",
)


@dataclass(frozen=True)
class Artifact:
    """Compiled code of one plan.

    Attributes:
        object_code: a relocatable object file for the target; for a GPU a :class:`tvm_conv3d.engine.cuda.image.Image`.
        functions: what each compiled function takes, by its name: the convolution, the packing of its weights, or
            both; none where the code is no plan's.
        schedule: the scheduled function as TVMScript, for people.
        workspace: memory of its intermediates.
    """

    object_code: bytes
    functions: Mapping[str, Function]
    schedule: str
    workspace: Workspace = NO_WORKSPACE


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


def artifact_key(plan: Plan, target: Target) -> str:
    """Hash of all that the machine code depends on: spec, plan, target, versions, and the sources that made it."""
    return key_of({"spec": plan.spec.key(), "plan": plan.describe(), "target": target.text})


def packing_key(plan: Plan, main: Function, target: Target) -> str:
    """The same of the function `pack` alone, which plans share whose weights lie alike, whatever their sizes.

    Args:
        plan: whose weights are packed.
        main: what its convolution takes, packed weights among it.
        target: of the code.
    """
    packed = [argument.shape for argument in main.of("weights", "bias")]
    identity = {"variant": asdict(plan.variant), "weights": canonicalize(plan.spec).packing_identity, "packed": packed}
    return key_of({"pack": plan.algorithm, **identity, "target": target.text})


def key_of(identity: Mapping[str, object]) -> str:
    """Hash of `identity`, the versions, and the sources of all that compiles."""
    identity = {**identity, "versions": {**_versions(), "sources": source_hash()}}
    return notes.key_of(identity)


@functools.cache
def source_hash() -> str:
    """Hash of the sources of all that is listed in :data:`COMPILING`."""
    digest = hashlib.sha256()
    for part, place in sources().items():
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = path.relative_to(place).as_posix()
            digest.update(f"{part} {name}".encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sources() -> dict[str, Path]:
    """The file of each module, and the folder of each package, in :data:`COMPILING`.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    found = {}
    for part in COMPILING:
        spec = importlib.util.find_spec(part)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"A part of this package is missing: {part}. Install it again.", name=part)
        found[part] = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    return found


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in (*PINNED, "tvm-conv3d")}
