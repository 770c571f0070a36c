"""From a scheduled function to CUDA source and the launches of its kernels; needs no GPU and no CUDA compiler."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Launch, Launches
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.gpu import GpuTraits, gpu_traits

if TYPE_CHECKING:
    from tvm import IRModule

#: TVM's names of a launch's extents.
_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_BLOCK = ("threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"

#: Blocks along each axis of a grid, and threads along the last one of a block, at most.
_MAX_BLOCKS = (2**31 - 1, 65535, 65535)
_MAX_ALONG_Z = 64

#: TVM's hook that compiles source as soon as it is generated, where its CUDA runtime is loaded.
_HOOK = "tvm_callback_cuda_compile"

_lock = ForkSafeLock()


@dataclass(frozen=True)
class DeviceSource:
    """CUDA source and how to run it.

    Attributes:
        source: CUDA C++.
        functions: what a call of each function launches, by its name; workspaces are what one kernel fills and a later
            one reads.
        kernels: TVM's module of the kernels, as the source was made of it.
    """

    source: str
    functions: Mapping[str, Launches]
    kernels: IRModule


def lower(module: IRModule, target: Target) -> DeviceSource:
    """The CUDA source of scheduled functions.

    Raises:
        RuntimeError: TVM can't lower it, the host would have to do more than allocate and launch, or a launch is too
            large for the target.
    """
    import tvm
    from tvm.tirx.build import split_host_device_mods

    from tvm_conv3d.schedules.cuda.common import REGISTERS

    made = target.as_tvm()
    pipeline, _, finalize = tvm.tirx.get_default_tir_pipeline(made)
    with tvm.transform.PassContext(config=options(module)):
        host, devices = split_host_device_mods(pipeline(tvm.tirx.transform.BindTarget(made)(module)))
    if len(devices) != 1:
        raise RuntimeError(f"A convolution must have kernels for one device. Received: {len(devices)}")
    (device,) = devices.values()
    functions = {}
    for var, scheduled in module.functions.items():
        name = str(var.name_hint)
        functions[name] = _launches_of(host[name], [str(parameter.name) for parameter in scheduled.params])
        for launch in functions[name].launches:
            _check_limits(launch, _static_shared(device[launch.kernel]), gpu_traits(target))
    kernels = finalize()(device)
    with _not_compiling(tvm):
        code = tvm.get_global_func("target.build.cuda")(kernels, made)
    source = str(code.inspect_source("cuda"))
    for var, scheduled in module.functions.items():
        if REGISTERS in scheduled.attrs:
            names = [launch.kernel for launch in functions[str(var.name_hint)].launches]
            source = toolkit.with_registers(source, names, int(scheduled.attrs[REGISTERS]))
    return DeviceSource(source, functions, kernels)


def options(module: IRModule) -> dict[str, Any]:
    """TVM's options for lowering scheduled functions."""
    import tvm_ffi
    from tvm.s_tir import SBlock
    from tvm.tirx import For

    from tvm_conv3d.schedules.cuda.common import PIPELINED

    found: dict[str, Any] = {}

    def note_arrays(block: SBlock) -> None:
        if any(buffer.scope() == "shared.dyn" for buffer in block.alloc_buffers):
            # this pass would let arrays of two types share memory, and a later one refuse that; yet another merges them
            found["tirx.disable_storage_rewrite"] = True

    def note_copies(loop: For) -> None:
        if PIPELINED in loop.annotations:
            found["tirx.use_async_copy"] = True

    for function in module.functions.values():
        tvm_ffi.structural_walk(function.body, ((SBlock, note_arrays), (For, note_copies)))
    return found


def _launches_of(host: Any, parameters: Sequence[str]) -> Launches:
    """What the host's part of a function with these parameters launches."""
    workspaces = _workspaces(host, parameters)
    launches = tuple(_launches(host, parameters, workspaces))
    return Launches(launches, {name: _bytes_of(buffer) for name, buffer in workspaces.items()})


def _check_limits(launch: Launch, static: int, traits: GpuTraits) -> None:
    """Refuses what a GPU would refuse at the call.

    Raises:
        RuntimeError: the launch is too large for the architecture.
    """
    # only what is sized at launch can be asked for
    for shared, most in ((static, traits.shared_per_block), (static + launch.shared, traits.shared_opt_in)):
        if shared > most:
            raise RuntimeError(
                f"{launch.kernel} needs {shared} bytes of shared memory for a block, and {traits.name} gives {most}: "
                "take smaller tiles."
            )
    threads = math.prod(launch.block)
    if threads > traits.threads_per_block or launch.block[2] > _MAX_ALONG_Z:
        raise RuntimeError(
            f"{launch.kernel} needs {launch.block} threads in a block, and {traits.name} gives "
            f"{traits.threads_per_block}, {_MAX_ALONG_Z} of them along the last axis: take smaller tiles."
        )
    if any(extent > most for extent, most in zip(launch.grid, _MAX_BLOCKS, strict=True)):
        raise RuntimeError(f"{launch.kernel} needs {launch.grid} blocks, and a GPU takes {_MAX_BLOCKS}.")


def _static_shared(function: Any) -> int:
    """Bytes of shared memory that the arrays of a kernel take."""
    import tvm_ffi
    from tvm.tirx import AllocBuffer

    sizes = [0]

    def note(allocation: AllocBuffer) -> None:
        if allocation.buffer.scope() == "shared":
            sizes.append(_bytes_of(allocation.buffer))

    tvm_ffi.structural_walk(function.body, ((AllocBuffer, note),))
    return sum(sizes)


def _bytes_of(buffer: Any) -> int:
    # elements are vectors where nothing reads them one by one
    return math.prod(map(int, buffer.shape)) * int(buffer.dtype.itemsize)


def _workspaces(host: Any, parameters: Sequence[str]) -> dict[str, Any]:
    """The buffers that the host would allocate, by names that no other buffer has."""
    import tvm_ffi
    from tvm.tirx import AllocBuffer

    found: dict[str, Any] = {}

    def note(allocation: AllocBuffer) -> None:
        base = str(allocation.buffer.name)
        names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        found[next(name for name in names if name not in (*parameters, *found))] = allocation.buffer

    tvm_ffi.structural_walk(host.body, ((AllocBuffer, note),))
    return found


def _launches(host: Any, parameters: Sequence[str], workspaces: Mapping[str, Any]) -> Iterator[Launch]:
    import tvm_ffi
    from tvm.ir import Call
    from tvm.tirx import DeclBuffer

    calls: list[Any] = []
    # workspaces of which one is read no more when the other is first written are one allocation with two views
    views: list[tuple[Any, Any]] = []

    def note(call: Call) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            calls.append(call)

    def note_view(view: DeclBuffer) -> None:
        views.append((view.buffer, view.data))

    tvm_ffi.structural_walk(host.body, ((Call, note), (DeclBuffer, note_view)))
    for call in calls:
        tags = [str(tag) for tag in call.attrs.launch_params]
        name, *operands = call.args
        extents = dict(zip(tags, map(int, operands[len(operands) - len(tags) :]), strict=True))
        if not extents.keys() <= {*_GRID, *_BLOCK, _SHARED}:
            raise RuntimeError(f"Unexpected launch parameters {tags}: is this another TVM version?")
        grid, block = (tuple(extents.get(tag, 1) for tag in axes) for axes in (_GRID, _BLOCK))
        arguments = tuple(
            _argument(operand, parameters, workspaces, views) for operand in operands[: len(operands) - len(tags)]
        )
        yield Launch(str(name.value), grid, block, extents.get(_SHARED, 0), arguments)  # type: ignore[arg-type]


def _pointed(operand: Any) -> Any:
    """The buffer whose memory an operand is."""
    while len(getattr(operand, "args", ())) == 1:
        operand = operand.args[0]
    return operand


def _argument(
    operand: Any, parameters: Sequence[str], workspaces: Mapping[str, Any], views: Sequence[tuple[Any, Any]]
) -> str:
    """The name of the parameter or workspace whose memory `operand` points to; views are buffers with their memory."""
    pointed = _pointed(operand)
    while (memory := next((data for view, data in views if view.same_as(pointed)), None)) is not None:
        pointed = _pointed(memory)
    for name, workspace in workspaces.items():
        if workspace.same_as(pointed):
            return name
    match = re.match(rf"({'|'.join(map(re.escape, parameters))})(_\d+)?\b", str(operand))
    if match is None:
        raise RuntimeError(f"A kernel's argument must be a parameter or a workspace. Received: {operand}")
    return match[1]


@contextmanager
def _not_compiling(tvm: Any) -> Iterator[None]:
    """Keeps TVM from compiling the source: it would do so with --use_fast_math, which changes numbers."""
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        yield
        return
    with _lock:
        before = tvm.get_global_func(_HOOK, allow_missing=True)
        tvm.register_global_func(_HOOK, lambda source, *rest: b"", override=True)
        try:
            yield
        finally:
            tvm.register_global_func(_HOOK, before or _absent, override=True)


def _absent(*_: Any) -> bytes:
    raise RuntimeError("There is no CUDA compiler.")
