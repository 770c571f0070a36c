"""What compiled normalizations are told apart by."""

from __future__ import annotations

import pytest

from tvm_conv3d.spec.normalization import NormalizationSpec, canonical


def test_keys() -> None:
    specs = [
        NormalizationSpec(dtype, post_ops, in_place)
        for dtype in ("float32", "bfloat16")
        for post_ops in ((), ("relu",), ("add", "prelu"), ("leaky_relu:0.01",))
        for in_place in (False, True)
    ]
    assert len({spec.key() for spec in specs}) == len(specs)
    assert specs[0].key() == "normalization_float32_linear"
    assert NormalizationSpec("float64", ("add", "prelu"), True).key() == "normalization_float64_add+prelu_in_place"


def test_chains_may_hold_a_slope() -> None:
    assert canonical(["add", "linear", "prelu", "leaky_relu:0.010"]) == ("add", "prelu", "leaky_relu:0.01")
    assert canonical(()) == ()


@pytest.mark.parametrize("post_ops", ["relu", None, ["prelu:1"], ["add", "prelu", "add"], ["swish"], [3]])
def test_other_chains_are_refused(post_ops: object) -> None:
    with pytest.raises(ValueError, match="Received"):
        canonical(post_ops)  # type: ignore[arg-type]
