"""Shared fixtures: every test run has a module cache of its own; where kernels for GPUs run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.cuda import driver


def _has_gpu() -> bool:
    try:
        return driver.get().count() > 0
    except driver.CudaError:
        return False


_ON_A_GPU = (pytest.mark.gpu, pytest.mark.skipif(not _has_gpu(), reason="needs an NVIDIA GPU"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", metavar="DIR", help="a folder of kernels that test runs of the same code share")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_CONV3D_CACHE", pytestconfig.getoption("--kernels") or str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test, or a command that it runs, asks for is not asked for by the next one."""
    monkeypatch.setattr(threads._state, "requested", None)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=_ON_A_GPU)])
def machine(request: pytest.FixtureRequest) -> str:
    """Where kernels for GPUs run: thread by thread on the CPU, and on a real GPU where there is one."""
    return str(request.param)
