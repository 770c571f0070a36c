"""How many bytes the packed weights of each convolution of a network may take, as all of them are held together.

Winograd's packed weights are up to 20 times the plain ones. Where a network's volumes are small and its channels many,
tiles of a smaller size pack a half of that and take a little longer: nothing that a single layer would choose, but of
the whole network's time it is little, as most of that goes to large volumes of few channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from tvm_conv3d.engine.bounded import Candidate, candidates
from tvm_conv3d.engine.together import Option, choose
from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.description import Target

#: The part of all convolutions' estimated time that may be lost for smaller packed weights. The estimate holds: of 0.05
#: without a rate DynUNet's calls took 1.03 of the time, as SegResNet's and ResNet-50's, r3d_18's 1.07 (two threads of a
#: Zen 5, 2026-11-28, in turns). By estimate DynUNet takes 307 MiB in place of 580 for 4.2 % of its time, SegResNet 71
#: in place of 149 for 5.2 %, r3d_18 283 in place of 421 for 1.4 %.
SHARE = 0.06

#: Of it, what may be lost for the same part of the bytes: 1 % of r3d_18's time would save 7 MiB of 283.
RATE = 0.2

#: Bytes of all packed weights up to which nothing is lost.
ENOUGH = 64 << 20


def packed_limits(calls: Sequence[tuple[Conv3DSpec, Hashable]]) -> list[int | None]:
    """The limit of each call on this CPU; None where it takes the fastest plan.

    Args:
        calls: of a network: the problem, of weights without structure, and what tells its weights from others'.
    """
    target = requested_target(None, threads.get_num_threads())
    # calls of one problem are all done alike, by one compiled code
    readers = Counter(spec for spec, _ in calls)
    forms = Counter(spec for spec, _ in dict.fromkeys(calls))
    found = {spec: each for spec in readers if (each := _candidates(spec, target))}
    layers = [[Option(readers[s] * c.cost, forms[s] * c.packed_bytes) for c in each] for s, each in found.items()]
    chosen = dict(zip(found, choose(layers, SHARE, ENOUGH, RATE), strict=True))
    limits = {spec: found[spec][number].packed_bytes for spec, number in chosen.items() if number}
    return [limits.get(spec) for spec, _ in calls]


def _candidates(spec: Conv3DSpec, target: Target) -> list[Candidate]:
    """None where nothing can be planned, which the call will tell."""
    if spec.empty:
        return []
    try:
        return candidates(spec, target)
    except ValueError:
        return []
