"""Code that no plan describes: what compiling it leaves behind."""

from __future__ import annotations

import gc
import weakref

import pytest

from tvm_conv3d.runtime import digest, helper_code
from tvm_conv3d.target.cpu import host_target


def test_compiling_keeps_nothing_of_its_callers_alive(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path_factory.mktemp("helpers")))
    monkeypatch.setattr(helper_code, "_modules", {})
    # TVM's import leaves such cycles, too
    host_target(1)

    class Tensor:
        """What a caller has in hand."""

    def call() -> weakref.ref[Tensor]:
        mine = Tensor()
        helper_code.get({"name": "a digest of this test's"}, digest._module)
        return weakref.ref(mine)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()


def test_errors_of_compiling_are_the_callers(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path_factory.mktemp("helpers")))
    monkeypatch.setattr(helper_code, "_modules", {})

    def refuses() -> None:
        raise MemoryError("none left")

    for _ in range(2):
        with pytest.raises(MemoryError, match="none left"):
            helper_code.get({"name": "what can't be declared"}, refuses)  # type: ignore[arg-type]
    assert not helper_code._modules
