"""From a scheduled TVM function to its CUDA source and launches, with no GPU and no nvcc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuda_on_cpu.execute import Launch
from cuda_on_cpu.rewrite import UnsupportedKernelError
from tvm_conv3d.target.description import Target

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class GlobalBuffer:
    """A parameter of the function, or a workspace that its host part allocates."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LoweredModule:
    """All that is needed to run one function: no TVM object is left in it."""

    source: str
    launches: tuple[Launch, ...]
    parameters: tuple[GlobalBuffer, ...]
    workspaces: tuple[GlobalBuffer, ...]


def lower_module(module: Any, target: Any) -> LoweredModule:
    """Compile a PrimFunc, or an IRModule with one function, for a CUDA target, and read its launches.

    Raises:
        UnsupportedKernelError: the host part does more than allocate and launch, or a shape is not constant.
    """
    import tvm
    from tvm.ir.instrument import pass_instrument

    made = target.as_tvm() if isinstance(target, Target) else tvm.target.Target(target)
    split: list[Any] = []

    @pass_instrument
    class _Capture:
        def run_after_pass(self, captured: Any, info: Any) -> None:
            if info.name == "tirx.SplitHostDevice":
                split.append(captured)

    with tvm.transform.PassContext(instruments=[_Capture()], config=_config()):
        executable = tvm.compile(module, target=made)
    runtime_module = getattr(executable, "mod", executable)
    if not split or not runtime_module.imports:
        raise UnsupportedKernelError("the function has no kernel: are its loops bound to threads?")
    source = runtime_module.imports[0].inspect_source()
    return _read_host(split[-1], source)


def _config() -> dict[str, Any]:
    # The caller's options (vectorisation, merged shared memory, ...) stay in force.
    import tvm

    return dict(tvm.transform.PassContext.current().config)


def _read_host(module: Any, source: str) -> LoweredModule:
    hosts = [f for f in module.functions.values() if f.attrs.get("tirx.is_entry_func")]
    if len(hosts) != 1:
        raise UnsupportedKernelError(f"a module must have one entry function. Received: {len(hosts)}")
    (host,) = hosts
    names = _Names()
    parameters = tuple(_buffer(names.add(var), var) for var in host.params)
    reader = _HostReader(names)
    reader.visit(host.body)
    return LoweredModule(source, tuple(reader.launches), parameters, tuple(reader.workspaces))


class _Names:
    """Unique names for TVM's variables, which are told apart by identity."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, str]] = []

    def add(self, var: Any) -> str:
        taken = {name for _, name in self._known}
        name = base = str(var.name).replace("-", "_")
        number = 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        self._known.append((var, name))
        return name

    def alias(self, var: Any, name: str) -> None:
        self._known.append((var, name))

    def find(self, expression: Any) -> str:
        """The name behind a variable, or behind the data pointer of one."""
        while hasattr(expression, "args") and len(expression.args) == 1:
            expression = expression.args[0]
        for var, name in self._known:
            if var.same_as(expression):
                return name
        raise UnsupportedKernelError(f"a kernel's argument must be a buffer. Received: {expression}")


class _HostReader:
    """Walks a host function that allocates workspaces and launches kernels, one after another."""

    def __init__(self, names: _Names) -> None:
        self.launches: list[Launch] = []
        self.workspaces: list[GlobalBuffer] = []
        self._names = names

    def visit(self, statement: Any) -> None:
        kind = type(statement).__name__
        visitors: dict[str, Callable[[Any], None]] = {
            "SeqStmt": self._sequence,
            "AllocBuffer": self._allocate,
            "DeclBuffer": self._declare,
            "Evaluate": self._evaluate,
            "AttrStmt": lambda s: self.visit(s.body),
        }
        if kind not in visitors:
            raise UnsupportedKernelError(f"the host part may allocate and launch only. Received: {kind}: {statement}")
        visitors[kind](statement)

    def _sequence(self, statement: Any) -> None:
        for part in statement.seq:
            self.visit(part)

    def _allocate(self, statement: Any) -> None:
        if statement.buffer.scope() != "global":
            raise UnsupportedKernelError(
                f"the host part cannot allocate {statement.buffer.scope()} memory: {statement}"
            )
        self.workspaces.append(_buffer(self._names.add(statement.buffer), statement.buffer))

    def _declare(self, statement: Any) -> None:
        self._names.alias(statement.buffer, self._names.find(statement.data))

    def _evaluate(self, statement: Any) -> None:
        call = statement.value
        if getattr(getattr(call, "op", None), "name", "") != "tirx.call_ffi_kernel":
            if hasattr(call, "args"):
                raise UnsupportedKernelError(f"the host part may allocate and launch only. Received: {call}")
            return
        tags = [str(tag) for tag in call.attrs.launch_params]
        operands = list(call.args)[1:]
        arguments, extents = operands[: len(operands) - len(tags)], operands[len(operands) - len(tags) :]
        launch = {tag: _integer(extent) for tag, extent in zip(tags, extents, strict=True)}
        unknown = [tag for tag in tags if tag not in _LAUNCH_TAGS]
        if unknown:
            raise UnsupportedKernelError(f"launch parameters must be among {_LAUNCH_TAGS}. Received: {unknown}")
        self.launches.append(
            Launch(
                kernel=str(call.args[0].value),
                grid=(launch.get("blockIdx.x", 1), launch.get("blockIdx.y", 1), launch.get("blockIdx.z", 1)),
                block=(launch.get("threadIdx.x", 1), launch.get("threadIdx.y", 1), launch.get("threadIdx.z", 1)),
                dynamic_shared_bytes=launch.get("tirx.use_dyn_shared_memory", 0),
                arguments=tuple(self._names.find(argument) for argument in arguments),
            )
        )


_LAUNCH_TAGS = (
    *(f"{index}Idx.{axis}" for index in ("block", "thread") for axis in "xyz"),
    "tirx.use_dyn_shared_memory",
)


def _buffer(name: str, var: Any) -> GlobalBuffer:
    shape = tuple(_integer(extent) for extent in var.shape)
    # elements are vectors where no kernel reads them one by one
    lanes = int(var.dtype.lanes)
    return GlobalBuffer(name, shape if lanes == 1 else (*shape, lanes), str(var.dtype).partition("x")[0])


def _integer(expression: Any) -> int:
    value = getattr(expression, "value", expression)
    if not isinstance(value, int):
        raise UnsupportedKernelError(f"shapes and launches must be constant. Received: {expression}")
    return value
