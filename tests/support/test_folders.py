"""Folders named in environment variables: what can't be a folder is answered in words."""

from __future__ import annotations

import warnings
from pathlib import Path

import platformdirs
import pytest

from tvm_conv3d import Conv3D
from tvm_conv3d.engine import records
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.engine.records import RecordWarning
from tvm_conv3d.layer import keras_config
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import folders
from tvm_conv3d.target.cpu import host_target

NOBODY = "~nosuchuser/kept"
SPEC = Conv3DSpec(1, (2, 2, 2), 2, 2, (1, 1, 1))


def test_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, NOBODY)
    with pytest.raises(ValueError, match=r"TVM_CONV3D_CACHE .*~nosuchuser/kept.*whole path"):
        folders.cache_root()
    with pytest.raises(ValueError, match="TVM_CONV3D_CACHE"):
        Conv3D(2, 1).plan_for((1, 2, 2, 2, 2))


def test_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"logs.*~nosuchuser/kept"):
        make_plan(SPEC, host_target(2), NOBODY)
    monkeypatch.setenv(records.LOGS_VARIABLE, NOBODY)
    with pytest.warns(RecordWarning, match=r"TVM_CONV3D_LOGS.*~nosuchuser/kept"):
        assert make_plan(SPEC, host_target(2)).origin == "default"


def test_keras_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_config, "loaded_keras", lambda: None)
    monkeypatch.setenv("KERAS_HOME", NOBODY)
    with pytest.warns(RuntimeWarning, match=r"KERAS_HOME.*~nosuchuser/kept"):
        assert keras_config.image_data_format() == "channels_last"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/tvm_conv3d")
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv(folders.CACHE_VARIABLE)
    assert folders.cache_root() == tmp_path / "tvm_conv3d"
    monkeypatch.setattr(keras_config, "loaded_keras", lambda: None)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", _no_home)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keras_config.image_data_format() == "channels_last"


def _no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")
