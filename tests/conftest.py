"""Shared fixtures: every test run has a module cache of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_CONV3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
