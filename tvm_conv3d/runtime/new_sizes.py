"""Which plan the first call of a new size takes.

Layers of one size are compiled at their best at once. But where a layer meets ever new sizes, most of them once or
twice, compiling the best plan takes longer than it saves. So the first call of a further size takes the plan that sums
the products of the definition, which compiles in a fraction of the time; the second call has the best plan compiled,
and all later ones take it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import nonfinite
from tvm_conv3d.spec import NO_PADS, Conv3DSpec
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import cpu_traits, is_cuda
from tvm_conv3d.target.description import Target

#: Cycles a core that the products of the definition may take in a first call: a third of a second, about what a plan
#: that is compiled fast saves.
MAX_CYCLES = 1e9


def layer_of(spec: Conv3DSpec) -> Conv3DSpec:
    """What the specs of one layer have in common, those of its sums of signs included."""
    sizes: dict[str, Any] = {"batch": 0, "size": (0, 0, 0), "pads": NO_PADS}
    return replace(nonfinite.sums_spec(spec), **sizes)


class NewSizes:
    """The sizes that layers were called with; several threads may use it.

    Calls of a size that begin before the first one has its machine code count as first ones, too.

    Args:
        most: sizes that are remembered between their first and their second call, and layers.
    """

    def __init__(self, most: int) -> None:
        self._known: Recent[Hashable, bool] = Recent(most)
        self._best: Recent[Hashable, Plan] = Recent(most)

    def best(self, size: Hashable) -> Plan | None:
        """The plan that was put off at the first call of `size`; None where that is still to come."""
        return self._best.get(size)

    def called(self, layer: Hashable, size: Hashable, best: Plan | None = None) -> None:
        """Notes that machine code of a size of `layer` is at hand.

        Args:
            layer: whose further sizes may hurry from now on.
            size: what was called.
            best: its best plan, where a quick one was taken.
        """
        self._known.put(layer, True)
        if best is not None:
            self._best.put(size, best)

    def hurries(self, layer: Hashable, size: Hashable, best: Plan, target: Target) -> bool:
        """Whether a call of `size`, whose `best` plan is not compiled yet, had better take a quick one."""
        if self._known.get(layer) is None or self._best.get(size) is not None:
            return False
        if best.exact:
            return False
        if is_cuda(target):
            # compiling takes seconds there, longer than any convolution
            return True
        traits = cpu_traits(target)
        return best.spec.macs / (traits.lanes(best.spec.accumulator) * traits.cores) <= MAX_CYCLES
