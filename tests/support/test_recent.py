"""Tables of seen shapes stay small."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_conv3d import Conv3D
from tvm_conv3d.runtime import executor, loader
from tvm_conv3d.support.lru import Recent


def test_what_is_asked_for_stays() -> None:
    table: Recent[int, str] = Recent(8)
    table.put(-1, "kept")
    for number in range(1000):
        table.put(number, str(number))
        assert table.get(-1) == "kept"
        assert table.get(number) == str(number)
        assert len(table) <= 8
    assert table.get(990) is None
    assert [table.get(number) for number in (997, 998, 999)] == ["997", "998", "999"]
    table.clear()
    assert table.get(-1) is None and len(table) == 0


def test_a_layer_with_ever_new_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_MAX_SHAPES", 4)
    monkeypatch.setattr(executor, "_MAX_LAYOUTS", 2)
    monkeypatch.setattr(loader, "_loaded", Recent(6))
    layer = Conv3D(2, (2, 1, 1), kernel_initializer="ones")
    for width in (*range(1, 9), 1, 8):
        assert (layer(np.ones((1, 2, 1, width, 1), np.float32)) == 2).all()
    assert len(layer._executor._calls) <= 4
    assert len(layer._executor._packed) <= 2
    assert len(loader._loaded) <= 6
    assert not loader._loading
