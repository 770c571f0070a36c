"""What is installed works as the checkout does: the wheel, built from the sdist, convolves without the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

# Looked for, not imported: pip takes setuptools' hands off distutils, and inductor then fails in later tests.
for package in ("build", "pip"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
#: The checkout's folder -> where its files lie in the wheel.
PLACES = {
    "tvm_conv3d": "tvm_conv3d",
    "schedules": "tvm_conv3d/schedules",
    "tuning_logs": "tvm_conv3d/tuning_logs",
}
LEAVE = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "demo_output"
)
PROBE = """
import json
from pathlib import Path
import numpy as np
import tvm_conv3d
from tvm_conv3d import Conv3D, schedules
from tvm_conv3d.reference import oracle as reference
from tvm_conv3d.spec import Conv3DSpec

home = Path(tvm_conv3d.__file__).parent
# Beside `schedules`: so they are found in a wheel and in a checkout alike.
logs = Path(schedules.__file__).parents[1] / "tuning_logs"
layer = Conv3D(4, 3, padding="valid", activation="relu")
x = np.random.default_rng(0).standard_normal((2, 5, 6, 7, 3)).astype("float32")
y = layer(x)
kernel, bias = layer.get_weights()
spec = Conv3DSpec(batch=2, size=(5, 6, 7), channels=3, filters=4, kernel=(3, 3, 3))
expected = np.maximum(reference.convolve(spec, x, kernel, bias), 0)
print(json.dumps({
    "package": str(home),
    "schedules": str(Path(schedules.__file__).parent),
    "logs": sorted(str(p.relative_to(home)) for p in logs.rglob("*.*")),
    "type": str(y.dtype),
    "error": reference.relative_error(y, expected),
    "version": tvm_conv3d.__version__,
}))
"""


def shipped(folder: str) -> set[str]:
    """The checkout's files below a folder, as the wheel names them."""
    return {
        f"{PLACES[folder]}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and a wheel made from that."""
    place = tmp_path_factory.mktemp("built")
    # In a copy: a build leaves folders behind, and old ones leak into new wheels.
    source = shutil.copytree(ROOT, place / "source", ignore=LEAVE)
    # A target's folder may have any name, and need not be there yet.
    target = source / "tuning_logs" / "some-target_2.0"
    target.mkdir(exist_ok=True)
    (target / "records.jsonl").write_text("{}\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel, and a view of this environment's dependencies."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    interpreter = place / scripts / ("python.exe" if os.name == "nt" else "python")
    (wheel,) = built.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # A plain path: .pth files below it, an editable install's among them, are not read.
    variables = {"base": str(place), "platbase": str(place)}
    (Path(sysconfig.get_path("purelib", "venv", variables)) / "dependencies.pth").write_text(
        "\n".join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))) + "\n"
    )
    return interpreter


def test_wheel_has_every_file(built: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in PLACES:
        assert shipped(folder) - names == set()
    assert "tvm_conv3d/tuning_logs/some-target_2.0/records.jsonl" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tvm_conv3d"}


def test_sdist_has_every_file(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (*PLACES, "tests", "scripts"):
        missing = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        } - names
        assert missing == set()
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "setup.py", "pyproject.toml"} <= names


def test_installed_wheel_convolves(python: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "TVM_CONV3D_CACHE": str(tmp_path / "cache")}
    # -I: neither the working directory nor PYTHONPATH nor the user's packages are looked into.
    done = subprocess.run(
        [str(python), "-I", "-c", PROBE],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(python.parents[1])
    assert Path(found["schedules"]) == Path(found["package"]) / "schedules"
    assert "tuning_logs/some-target_2.0/records.jsonl" in found["logs"]
    assert found["type"] == "float32"
    assert found["error"] < 1e-5
    assert list(empty.iterdir()) == []


def test_readme_and_ci_run_the_same_tests():
    """And what the README's command leaves out, the CI runs."""
    command = "pip install -e '.[test]' && python -m pytest\n"
    ci = (ROOT / ".ci" / "run").read_text()
    assert command in (ROOT / "README.md").read_text()
    assert command in ci
    (left_out,) = re.findall(r"-m 'not (\w+)'", (ROOT / "pyproject.toml").read_text())
    assert re.search(rf"^ +python -m pytest -m {left_out} ", ci, re.MULTILINE)
