"""How the packed weights of a network's layers are bounded together, and the plans within the bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tvm_conv3d.engine import bounded
from tvm_conv3d.engine.bounded import candidates, plan_within
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.reference.oracle import convolve
from tvm_conv3d.runtime import executor, packed_limits
from tvm_conv3d.runtime.interchange import wrap
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.folders import CACHE_VARIABLE
from tvm_conv3d.target.resolve import resolve

#: A deep layer, whose Winograd weights are several times as large as its weights, and one of a large volume.
DEEP = Conv3DSpec.parse("n1_i6x6x6x128_o128_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_nobias_linear")
WIDE = Conv3DSpec.parse("n1_i96x96x96x32_o32_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_nobias_linear")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return


@pytest.fixture
def target() -> object:
    return resolve({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "num-cores": 2}, 2)


def test_candidates_pack_less_and_less(target: object) -> None:
    found = candidates(DEEP, target)
    assert found[0].plan == make_plan(DEEP, target)
    assert len(found) > 2
    for one, other in itertools.pairwise(found):
        assert other.packed_bytes < one.packed_bytes
        assert other.cost >= one.cost
    assert found[-1].packed_bytes <= 2 * 4 * np.prod(DEEP.kernel_shape)


def test_a_plan_within_a_limit_is_the_fastest_that_fits(target: object) -> None:
    found = candidates(DEEP, target)
    assert plan_within(DEEP, target, None) == found[0].plan
    for each in found:
        assert plan_within(DEEP, target, each.packed_bytes) == each.plan
    assert plan_within(DEEP, target, found[1].packed_bytes - 1) == found[2].plan
    # the least that there is
    assert plan_within(DEEP, target, 1) == found[-1].plan


def test_candidates_are_found_on_disk(target: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = candidates(DEEP, target)
    searched = []
    real = bounded._found
    monkeypatch.setattr(bounded, "_found", lambda *given: searched.append(given) or real(*given))
    assert candidates(DEEP, target) == made
    assert not searched
    assert candidates(DEEP, target, workspace_limit=1 << 27)
    assert len(searched) == 1
    for note in (tmp_path / "candidates").glob("*.json"):
        note.write_text("{}")
    assert candidates(DEEP, target) == made
    assert len(searched) == 2


def test_only_what_is_large_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    deep, enough = [(DEEP, "a"), (DEEP, "b"), (WIDE, "c")], packed_limits.ENOUGH
    assert packed_limits.packed_limits(deep) == [None] * 3
    assert packed_limits.packed_limits([]) == []
    monkeypatch.setattr(packed_limits, "ENOUGH", 0)
    first, second, wide = packed_limits.packed_limits(deep)
    assert first is not None
    # alike, so that one code computes both
    assert first == second
    assert wide is None
    monkeypatch.setattr(packed_limits, "SHARE", 0.0)
    assert enough > 0
    # only what is free
    for limit in packed_limits.packed_limits([(replace(DEEP, post_ops=("relu",)), "a")]):
        assert limit is None or limit >= first


def test_bounded_calls_are_right_and_pack_less() -> None:
    here = resolve(None, 2)
    limits = [each.packed_bytes for each in candidates(DEEP, here)]
    assert len(limits) > 1
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in (DEEP.input_shape, DEEP.kernel_shape))
    wanted = convolve(DEEP, x, kernel)
    sizes = []
    for limit in (None, limits[-1]):
        run = executor.Executor()
        weights = Weights(kernel, None, 1, False, None)
        result = run.convolve(DEEP, wrap(x), weights, packed_limit=limit)
        assert np.linalg.norm(result - wanted) < 1e-5 * np.linalg.norm(wanted)
        sizes.append(sum(form.nbytes for form in run._packed.values()))
    assert sizes[1] < sizes[0] / 2
