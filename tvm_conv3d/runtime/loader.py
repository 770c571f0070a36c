"""Machine code in this process: from memory, disk or the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm_conv3d.compute.shared.argument import PACK, Function
from tvm_conv3d.engine import build, cache
from tvm_conv3d.engine.artifact import MAIN, Artifact, artifact_key, packing_key
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.runtime import parallel
from tvm_conv3d.runtime.cuda.kernels import LoadedImage
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.description import Target

#: Kernels that the process keeps loaded without a layer that uses them; of the others the code's memory is freed.
_MAX_LOADED = 1024


@dataclass(frozen=True, eq=False)
class Entry:
    """One compiled function in this process.

    Attributes:
        code: takes the arguments, in order; for a GPU see :class:`tvm_conv3d.runtime.cuda.kernels.Kernels`.
        function: says which these are.
    """

    code: Any
    function: Function


@dataclass(frozen=True, eq=False)
class Loaded:
    """Machine code in this process: a plan's convolution, the packing of its weights, or both.

    Attributes:
        functions: by name.
        workspace: memory that the convolution takes for intermediates.
    """

    functions: Mapping[str, Entry]
    workspace: Workspace

    @property
    def main(self) -> Entry:
        """The convolution."""
        return self.functions[MAIN]


_loaded: Recent[str, Loaded] = process.keep("loader: loaded code", Recent(_MAX_LOADED))
_loading: dict[str, ForkSafeLock] = process.keep("loader: code that is being loaded", {})
_loading_lock = ForkSafeLock()


def get_loaded(plan: Plan, target: Target) -> Loaded:
    """The plan's machine code: from this process, else from disk, else compiled and kept.

    Raises:
        RuntimeError: the installed TVM is another version, or can't compile the plan.
    """
    key = artifact_key(plan, target)
    return _loaded.get(key) or _get(key, lambda: build.compile_plan(plan, target), _about(plan, target))


def get_packing(loaded: Loaded, plan: Plan, target: Target) -> Entry:
    """The function that packs weights for a loaded convolution: of the same code, where that has it, else alone.

    Args:
        loaded: the plan's convolution.
        plan: the plan.
        target: of the function, where it is found alone: a CPU that runs it.

    Raises:
        RuntimeError: the installed TVM is another version, or can't compile it.
    """
    if PACK in loaded.functions:
        return loaded.functions[PACK]
    key = packing_key(plan, loaded.main.function, target)
    packing = _loaded.get(key) or _get(key, lambda: build.compile_packing(plan, target), _about(plan, target))
    return packing.functions[PACK]


def _get(key: str, compile_code: Callable[[], Artifact], about: dict[str, object]) -> Loaded:
    """The machine code under `key`, by one thread at a time."""
    with _loading_lock:
        lock = _loading.setdefault(key, ForkSafeLock())
    try:
        with lock:
            found = _loaded.get(key)
            if found is None:
                artifact = cache.load(key)
                found = (None if artifact is None else _try_link(artifact)) or _compile(key, compile_code, about)
                _loaded.put(key, found)
    finally:
        # whoever waits has the lock in hand; whoever comes later finds the code
        _loading.pop(key, None)
    return found


def at_hand(plan: Plan, target: Target) -> bool:
    """Whether the plan's machine code is in this process or on disk."""
    key = artifact_key(plan, target)
    return _loaded.get(key) is not None or cache.holds(key)


def _compile(key: str, compile_code: Callable[[], Artifact], about: dict[str, object]) -> Loaded:
    with cache.compiling(key):
        # another process may have compiled it while this one waited
        artifact = cache.load(key)
        loaded = None if artifact is None else _try_link(artifact)
        if loaded is None:
            artifact = compile_code()
            cache.store(key, artifact, about)
            loaded = link(artifact)
    return loaded


def _about(plan: Plan, target: Target) -> dict[str, object]:
    return {"spec": plan.spec.key(), "plan": plan.describe(), "target": target.text}


def link(artifact: Artifact) -> Loaded:
    """Loads an artifact into this process; no compiler or linker of the system is used."""
    if Image.recognizes(artifact.object_code):
        code: Callable[[str], Any] = LoadedImage(Image.from_bytes(artifact.object_code)).functions.__getitem__
    else:
        code = parallel.link(artifact.object_code).get_function
    functions = {name: Entry(code(name), function) for name, function in artifact.functions.items()}
    return Loaded(functions, artifact.workspace)


def _try_link(artifact: Artifact) -> Loaded | None:
    """None where the object does not load: it is compiled anew."""
    try:
        return link(artifact)
    except (RuntimeError, ValueError, AttributeError, KeyError):
        return None
