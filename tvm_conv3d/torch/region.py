"""A module's `forward` that replays its graph where it may, and else is the module's own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tvm_conv3d.runtime.ahead import Compilers
from tvm_conv3d.support import heap
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch.choice import RECORDING, around
from tvm_conv3d.torch.graph import replay
from tvm_conv3d.torch.graph.ahead import bound_convolutions, compile_convolutions, pack_convolutions
from tvm_conv3d.torch.graph.binding import Replay
from tvm_conv3d.torch.graph.guards import Guards
from tvm_conv3d.torch.graph.recording import Place, record
from tvm_conv3d.torch.graph.rewriting import rewrite
from tvm_conv3d.torch.report import Report, described

#: Graphs that a module keeps, one for each shape of its inputs.
_MAX_GRAPHS = 64

#: Calls of a kind that are recorded in vain before they go layer by layer for good.
_MAX_TRIES = 3


@dataclass
class _Tries:
    """How often calls of a kind were recorded since the last replay."""

    count: int = 0


@dataclass(frozen=True)
class _Replay:
    """What calls of one kind do.

    Attributes:
        run: the graph as a function; None where the module is called as it is.
        structure: of the result.
        places: where it leaves tensors for later (:class:`tvm_conv3d.torch.graph.recording.Recording`).
        guards: what it depends on; None where it is so whatever the module becomes.
        tries: how often it was recorded since the last replay.
    """

    run: Callable[..., Any] | None
    structure: pytree.TreeSpec
    places: Sequence[Place]
    guards: Guards | None
    tries: _Tries


class Region:
    """Stands in for a module's `forward`, as an attribute of the module itself.

    The first call of a shape runs the module by torch, compares a replay with it, and returns torch's result. From then
    on the graph is replayed. Calls that need gradients, in training, under autocast, or inside of what traces, go
    layer by layer; so does a module whose graph can't be recorded. :class:`~tvm_conv3d.torch.report.Report` tells.

    Args:
        module: whose `forward` it is.
        report: where it tells what it does.
        own: the module's own `forward`, where that is an attribute, too, and not its class's.

    Attributes:
        progress: is told how many convolutions are compiled of how many, while a call is recorded.
    """

    def __init__(self, module: torch.nn.Module, report: Report, own: Callable[..., Any] | None = None) -> None:
        self._module = module
        self._report = report
        self._own = own
        self.progress: Callable[[int, int], None] | None = None
        self._make_tables()

    def _make_tables(self) -> None:
        self._replays: Recent[Hashable, _Replay] = Recent(_MAX_GRAPHS)
        self._tries: Recent[Hashable, _Tries] = Recent(_MAX_GRAPHS)
        self._lock = ForkSafeLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module, "_report": self._report, "_own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.progress = None
        self._make_tables()

    @property
    def report(self) -> Report:
        """What calls do."""
        return self._report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        reason = _not_replayed(self._module, tensors)
        key = None if reason else _key(leaves, structure)
        if key is None:
            return self._by_layers(reason or "arguments that are neither tensors nor plain values", args, kwargs)
        found = self._known(key)
        if found is None:
            return self._first(key, args, kwargs, tensors)
        found.tries.count = 0
        return self._replay(found, args, kwargs, tensors)

    def _known(self, key: Hashable) -> _Replay | None:
        """What calls of a kind do; None where that is to be recorded, anew where the module has changed."""
        found = self._replays.get(key)
        return found if found is not None and (found.guards is None or found.guards.hold()) else None

    def _replay(
        self, found: _Replay, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[torch.Tensor]
    ) -> Any:
        if found.run is None:
            return self._layers(*args, **kwargs)
        results = found.run(self._module, *tensors)
        count = found.structure.num_leaves
        for (container, key), tensor in zip(found.places, results[count:], strict=True):
            container[key] = tensor
        return pytree.tree_unflatten(results[:count], found.structure)

    @property
    def _layers(self) -> Callable[..., Any]:
        """The module's own `forward`."""
        return self._own or type(self._module).forward.__get__(self._module)

    def _by_layers(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if reason != RECORDING:
            self._report.note(reason)
        return self._layers(*args, **kwargs)

    def _first(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        """A call of a new kind, which is recorded; of a further size only where it comes again."""
        if len(self._replays) and self._replays.get(key) is None and self._tries.get(key) is None:
            self._tries.put(key, _Tries())
            return self._layers(*args, **kwargs)
        with self._lock:
            found = self._known(key)
            if found is None:
                return self._record(key, args, kwargs, tensors)
        # another thread has recorded it meanwhile
        return self._replay(found, args, kwargs, tensors)

    def _record(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        tries = self._tries.get(key) or _Tries()
        self._tries.put(key, tries)
        tries.count += 1
        guards = self._guards(key, tensors, tries)
        if guards is None:
            return self._layers(*args, **kwargs)
        before = pytree.tree_leaves((args, kwargs))
        recording = record(self._module, lambda: self._layers(*args, **kwargs), tensors)
        after = pytree.tree_leaves((args, kwargs))
        reason, graph, run = recording.reason, recording.graph, None
        if len(before) != len(after) or any(one is not other for one, other in zip(before, after, strict=True)):
            reason = reason or "it changes its arguments"
        if reason is None and graph is not None:
            run, reason = self._made(graph, guards, tensors, recording.result)
        guards.watch(recording.reads)
        wanted = pytree.tree_leaves(recording.result)
        settled = guards.hold() and (run is None or replay.tells(wanted))
        if not settled and tries.count < _MAX_TRIES:
            # the next call may do something else, or tell more
            return recording.result
        if not settled or tries.count > _MAX_TRIES:
            reason = reason or "its calls, or what is between them, change what they depend on, or give zeros only"
            run, guards = None, None
        heap.give_back()
        self._replays.put(key, _Replay(run, recording.structure, recording.places, guards, tries))
        self._report.recorded(_sizes(tensors), described(graph) if graph is not None and run else [], reason)
        return recording.result

    def _guards(self, key: Hashable, tensors: Sequence[torch.Tensor], tries: _Tries) -> Guards | None:
        """What a recording will depend on; None where there can be none."""
        held = {id(tensor) for tensor in (*self._module.parameters(), *self._module.buffers())}
        if any(id(tensor) in held for tensor in tensors):
            # in a graph it would be the input for ever
            self._report.note("an input that is the module's own parameter or buffer")
            return None
        try:
            return Guards(self._module)
        except Exception as error:
            reason = f"what its parts hold can't be looked at: {type(error).__name__}: {error}"
            self._replays.put(key, _Replay(None, pytree.tree_structure(None), (), None, tries))
            self._report.recorded(_sizes(tensors), [], reason)
            return None

    def _made(
        self, graph: Graph, guards: Guards, tensors: Sequence[torch.Tensor], expected: Any
    ) -> tuple[Replay | None, str | None]:
        """The graph as a function, where it computes what the module does; else why there is none."""
        try:
            reason = rewrite(graph)
            if reason is not None:
                return None, reason
            with Compilers() as compilers:
                bound_convolutions(graph, self._module, compilers)
                compile_convolutions(graph, self._module, compilers, self.progress)
                pack_convolutions(graph, self._module)
                # what torch's run, the compiler and packing have freed is not needed beside the replay's own
                heap.give_back()
                run, wanted = Replay(graph, self._module, guards), pytree.tree_leaves(expected)
                results = run(self._module, *tensors)[: len(wanted)]
                # what threads' intermediates have outgrown, before there are parts of results to be compared
                heap.give_back()
                reason = replay.agrees(results, wanted, tensors)
        except Exception as error:
            # whatever a network does that its graph can't: it is computed layer by layer
            reason = f"its graph fails: {type(error).__name__}: {error}"
        return (None, reason) if reason else (run, None)


def _not_replayed(module: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> str | None:
    """Why a call goes layer by layer."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "a tool that traces"
    if torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode() is not None:
        return "a transform of torch.func, or a mode that looks at each operator"
    reason = around()
    if reason is not None:
        return reason
    # a frozen ScriptModule is in inference for good
    if getattr(module, "training", False):
        return "training"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*tensors, *module.parameters())):
        return "gradients are enabled: call it under torch.inference_mode() or torch.no_grad()"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    for tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return f"an input of {type(tensor).__name__}"
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"an input on {tensor.device} of layout {tensor.layout}"
    return None


def _key(leaves: Sequence[Any], structure: pytree.TreeSpec) -> Hashable:
    """What tells calls of one kind from others; None where values can't be told apart."""
    first: dict[int, int] = {}
    parts: list[Hashable] = [structure, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            # not the offset: windows of one scan are views that differ in it alone
            form = (leaf.shape, leaf.dtype, leaf.stride(), leaf.requires_grad)
            parts.append((*form, first.setdefault(id(leaf), number)))
        elif isinstance(leaf, (str, int, float, bool, type(None), torch.dtype, torch.device)):
            parts.append((type(leaf), leaf))
        else:
            return None
    return tuple(parts)


def _sizes(tensors: Sequence[torch.Tensor]) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
