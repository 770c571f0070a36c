"""The benchmark of the first calls of new sizes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tvm_conv3d.bench import cli, first_calls
from tvm_conv3d.bench.first_calls import Calls
from tvm_conv3d.reference.layers import from_key
from tvm_conv3d.support import folders

LAYER = from_key(first_calls.USUAL)
SMALL = "n1_i6x6x6x3_o4_k2x2x2_s1x1x1_d1x1x1_p0.0x0.0x0.0_g1_ncdhw_float32_nobias_relu"


def test_sizes_are_new_and_the_same_for_the_same_seed() -> None:
    specs = first_calls.draw(LAYER, 20, seed=1)
    assert specs == first_calls.draw(LAYER, 20, seed=1) != first_calls.draw(LAYER, 20, seed=2)
    assert len({LAYER.spec.size, *(spec.size for spec in specs)}) == 21
    assert {replace(spec, size=LAYER.spec.size) for spec in specs} == {LAYER.spec}


def test_median_and_worst_close_the_table_and_what_is_wrong_is_marked() -> None:
    seconds = [(0.1, 0.5, 0.01), (0.3, 0.7, 0.02), (0.2, 0.6, 0.03)]
    errors = [(0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]
    found = [Calls(LAYER.spec, s, e, "winograd") for s, e in zip(seconds, errors, strict=True)]
    _, head, *rows, median, worst = first_calls.table(LAYER, found)
    assert [row.split()[-1] for row in rows] == ["winograd", "wrong*", "winograd"]
    assert median.split() == ["median", "0.200", "0.600", "0.020"]
    assert worst.split() == ["worst", "0.300", "0.700", "0.030"]
    assert len(head) - len("  best plan") == len(median)


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.environ[folders.CACHE_VARIABLE]
    assert cli.main(["--first-calls", "2", "--spec", SMALL, "--threads", "1"]) == 0
    assert os.environ[folders.CACHE_VARIABLE] == before
    said = capsys.readouterr().out
    assert "1 threads on" in said
    assert SMALL in said
    assert len(said.splitlines()) == 3 + 1 + 2 + 2 + 2
