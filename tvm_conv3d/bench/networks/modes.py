"""The ways to run a module: PyTorch's own, and this package's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

#: The backend's name for `torch.compile`.
BACKEND = "tvm_conv3d"


class NotAvailableError(RuntimeError):
    """This installation does not have the mode."""


class Prepared(NamedTuple):
    """A module ready to be called.

    Attributes:
        run: one call on the prepared input.
        first: what holds while it is called for the first time.
    """

    run: Callable[[], Any]
    first: Callable[[], AbstractContextManager[Any]] = nullcontext


def prepare(mode: str, module: torch.nn.Module, x: torch.Tensor) -> Prepared:
    """A module in one mode of :data:`tvm_conv3d.bench.networks.results.MODES`; the given one stays as it is.

    Raises:
        NotAvailableError: this installation does not have the mode.
    """
    if mode == "accelerate":
        network = _accelerated(module)
        return Prepared(lambda: network(x))
    net = copy.deepcopy(module)
    if mode == "compiled":
        compiled = _by_backend(net)
        return Prepared(lambda: compiled(x))
    data = x
    if mode.endswith("_cl"):
        net, data = (what.to(memory_format=torch.channels_last_3d) for what in (net, x))
    if not mode.startswith("compile"):
        return Prepared(lambda: net(data))
    # sizes are constant in either mode; the second would otherwise take the first's for changed ones
    inductor = torch.compile(net, dynamic=False)
    return Prepared(lambda: inductor(data), _freezing)


def _accelerated(module: torch.nn.Module) -> Any:
    try:
        from tvm_conv3d.torch import accelerate
    except ImportError as error:
        raise NotAvailableError(str(error)) from None
    return accelerate(module)


def _by_backend(module: torch.nn.Module) -> Any:
    import tvm_conv3d.torch  # noqa: F401  (registers it)

    if BACKEND not in torch._dynamo.list_backends():
        raise NotAvailableError(f"torch.compile has no backend {BACKEND!r}")
    return torch.compile(module, backend=BACKEND, dynamic=False)


def _freezing() -> AbstractContextManager[Any]:
    """Weights are constants to the compiler, which lays them out beforehand; it looks while it compiles only."""
    import torch._inductor.config

    return torch._inductor.config.patch(freezing=True)
