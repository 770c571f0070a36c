"""Where a network's time goes: torch's profiler, by kind of operator."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from tvm_conv3d.bench.networks.results import KINDS

#: Kind -> names of operators, without namespace and underscores around them. The first that fits counts.
_NAMES = {
    "transposed": r"conv_transpose3d|.*convolution_transpose.*",
    "convolution": r"conv3d|.*convolution.*|slow_conv.*",
    "norm": r".*(batch|instance|group|layer)_norm.*|normalization",
    "activation": r"(leaky_|p|)relu|prelu_kernel|[sgc]?elu|silu|mish|hard\w+|threshold|sigmoid|tanh|softmax",
    "pool/upsample": r".*pool(ing|[123]d).*|upsample.*|interpolat\w+",
    "linear": r"linear|linear_pointwise|mkl_linear|addmm|mm|bmm|baddbmm|matmul|einsum|scaled_dot_product.*",
    "concatenation": r"cat|concat|concatenat\w+|stack",
    "add": r"add",
    "copies": r"copy|pad|constant_pad_nd|contiguous|clone|to|to_copy|roll",
}

#: Operators whose arguments say whether they are transposed convolutions.
_TELLS = {"aten::convolution", "tvm_conv3d::convolution", "tvm_conv3d::fused_convolution"}


def by_kind(run: Callable[[], Any], calls: int) -> dict[str, float]:
    """Seconds of a call, by kind; their sum is the whole call under the profiler, which is slower than without.

    A copy counts as one wherever it happens; all else inside an operator counts as that operator.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        before = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = (time.perf_counter() - before) / calls
    return summed(found.events(), seconds, calls)


def summed(events: Iterable[Any], seconds: float, calls: int) -> dict[str, float]:
    """The same of torch's events, and of the seconds that a call took in all."""
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in events:
        kind = _kind(event)
        if kind is not None:
            kinds[kind] += event.self_cpu_time_total * 1e-6 / calls
    kinds["rest"] = max(0.0, seconds - sum(kinds.values()))
    return kinds


def _kind(event: Any) -> str | None:
    """That of the outermost operator of a known kind."""
    if event.name == "aten::copy_":
        return "copies"
    kind = None
    while event is not None:
        kind = _own_kind(event) or kind
        event = event.cpu_parent
    return kind


def _own_kind(event: Any) -> str | None:
    _, colons, operator = event.name.partition("::")
    if not colons:
        return None
    if event.name in _TELLS and any(value is True for value in event.concrete_inputs or ()):
        return "transposed"
    name = operator.partition(".")[0].strip("_")
    return next((kind for kind, names in _NAMES.items() if re.fullmatch(names, name)), None)
