"""The script that trains two networks: its data and its page, without a framework."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "training_run.py"))


def test_crops_are_the_same_at_each_call(script: dict[str, Any]) -> None:
    scan = np.random.default_rng(3).random((64, 70, 65)).astype(np.float32)
    first, second = (list(script["crops"](scan, 3)) for _ in range(2))
    assert [crop.shape for crop in first] == [(2, 64, 64, 64)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1]) and first[0].min() >= 0 and first[0].max() == 1


def test_tasks_fit_to_their_labels(script: dict[str, Any]) -> None:
    crop = np.random.default_rng(3).random((2, 64, 64, 64)).astype(np.float32)
    x, labels = script["tissue"](crop, 1)
    assert x.shape == (2, 1, 64, 64, 64) and x.dtype == np.float32
    assert np.array_equal(labels, crop > 0.25) and 0.1 < np.abs(x[:, 0] - crop).std() < 0.3
    x, labels = script["turned"](crop, 3)
    assert labels.ravel().tolist() == [0, 1]
    assert np.array_equal(x[0, ..., 0], crop[0]) and np.array_equal(x[1, :, :, ::-1, 0], crop[1])


def test_page_and_picture(script: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {
        name: {"losses": [0.7, 0.5, 0.4, 0.3, last], "seconds": [9.0, 9.0, 9.0, second, second]}
        for name, second, last in (("own", 0.3, 0.21), ("ours", 0.2, 0.22))
    }
    text = script["page"]({"BasicUNet, torch": runs}, ["here"], "a.png", "python a")
    assert "| BasicUNet, torch | 0.7000 | 0.2100 | 0.2200 | 300 | 200 | 1.50 |" in text
    assert "    python a\n" in text and "![loss curves](a.png)" in text
    script["draw"](tmp_path / "a.png", {"BasicUNet, torch": runs, "CT, torch": runs})
    assert (tmp_path / "a.png").stat().st_size > 1000
