"""What interpolation computes: a frozen description of one resampling in three axes, as PyTorch defines it."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_conv3d.spec import Triple, check_triple

NEAREST, TRILINEAR = "nearest", "trilinear"

MODES = (NEAREST, TRILINEAR)


@dataclass(frozen=True)
class Interpolation:
    """One resampling of `torch.nn.functional.interpolate`.

    Attributes:
        mode: "nearest" or "trilinear".
        size, out_size: depth, height, width of input and result in cells.
        scales: of each axis, by which coordinates are computed in place of the ratio of the sizes; empty for none.
        align_corners: the centres of the corner cells, not their corners, lie upon each other; of "trilinear" only.

    Raises:
        ValueError: a value is none of these.
    """

    mode: str
    size: Triple
    out_size: Triple
    scales: tuple[float, ...] = ()
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: {self.mode!r}")
        for name in ("size", "out_size"):
            check_triple(name, getattr(self, name))
        if len(self.scales) not in (0, 3):
            raise ValueError(f"`scales` must be three numbers, or none. Received: {self.scales}")
        if self.align_corners and self.mode != TRILINEAR:
            raise ValueError(f"`align_corners` is for mode={TRILINEAR!r} only. Received: mode={self.mode!r}")
