"""The cache on disk: keys, damage, foreign files, many processes, and a folder that can't be written."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from problems import assert_right
from tvm_conv3d.engine import artifact, build, cache
from tvm_conv3d.engine.artifact import Artifact, artifact_key
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import loader, packing
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import folders
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.target.resolve import resolve

SPEC = Conv3DSpec(1, (3, 4, 5), 3, 4, (2, 2, 2))

CONVOLVE = """
import numpy as np, warnings
from tvm_conv3d import Conv3D
from tvm_conv3d.engine import artifact, build, cache
from tvm_conv3d.support import folders
from tvm_conv3d.runtime import loader
layer = Conv3D(4, 2, kernel_initializer="ones")
print(float(layer(np.ones((1, 3, 4, 5, 3), "float32")).sum()))
"""
#: Windows times filters times the sum of one window of ones.
EXPECTED_SUM = 2 * 3 * 4 * 4 * 24


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "kept"))
    monkeypatch.setattr(loader, "_loaded", Recent(1024))
    cache._warned.clear()
    return tmp_path / "kept" / "modules"


@pytest.fixture
def plan() -> Plan:
    return make_plan(SPEC, host_target(2))


def of_plans(root: Path) -> list[Path]:
    """The folders of what was compiled of plans: not that of the pool of threads, which a process needs once."""
    found = [json.loads((folder / "meta.json").read_text()) for folder in root.glob("[!.]*")]
    return [root / meta["key"] for meta in found if "plan" in meta["about"]]


def get(plan: Plan) -> loader.Loaded:
    loader._loaded.clear()
    return loader.get_loaded(plan, host_target(2))


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    seen = []
    real = build.compile_plan

    def counting(plan: Plan, target: object) -> Artifact:
        seen.append(plan)
        return real(plan, target)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "compile_plan", counting)
    return seen


def test_compiled_once(root: Path, plan: Plan, compilations: list[Plan]) -> None:
    get(plan)
    get(plan)
    assert len(compilations) == 1
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    (folder,) = of_plans(root)
    assert {path.name for path in folder.iterdir()} == {"module.o", "meta.json", "schedule.py"}
    assert json.loads((folder / "meta.json").read_text())["about"]["spec"] == SPEC.key()
    assert "def main" in (folder / "schedule.py").read_text()


def _flip_a_byte(folder: Path) -> None:
    code = bytearray((folder / "module.o").read_bytes())
    code[len(code) // 2] ^= 0xFF
    (folder / "module.o").write_bytes(bytes(code))


def _forge(folder: Path) -> None:
    """A file that is no object, under a digest that fits."""
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "module.o").write_bytes(b"not an object")
    meta["sha256"] = cache._digest(b"not an object", meta["code"])
    (folder / "meta.json").write_text(json.dumps(meta))


def _change_a_shape(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["code"]["functions"]["main"][0]["shape"][1] += 1
    (folder / "meta.json").write_text(json.dumps(meta))


def _as_yesterday(folder: Path) -> None:
    """Shapes by position, and the workspace as two numbers."""
    meta = json.loads((folder / "meta.json").read_text())
    described = meta.pop("code")
    meta["shapes"] = [argument["shape"] for argument in described["functions"]["main"]]
    meta["workspace"] = [described["workspace"]["shared"], described["workspace"]["own"]]
    code = (folder / "module.o").read_bytes()
    meta["sha256"] = hashlib.sha256(json.dumps(meta["shapes"]).encode() + b"\0" + code).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


def _unknown_role(folder: Path) -> None:
    """Under a digest that fits."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["code"]["functions"]["main"][0]["role"] = "sight"
    meta["sha256"] = cache._digest((folder / "module.o").read_bytes(), meta["code"])
    (folder / "meta.json").write_text(json.dumps(meta))


DAMAGE = {
    "the format before arguments had names": _as_yesterday,
    "an unknown role": _unknown_role,
    "another shape": _change_a_shape,
    "flipped byte": _flip_a_byte,
    "truncated": lambda folder: (folder / "module.o").write_bytes((folder / "module.o").read_bytes()[:1000]),
    "no object": lambda folder: (folder / "module.o").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "meta is no json": lambda folder: (folder / "meta.json").write_bytes(b"\xff\x00{"),
    "meta is a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta lacks the code": lambda folder: (folder / "meta.json").write_text('{"key": "x"}'),
    "forged": _forge,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_rebuilt(root: Path, plan: Plan, compilations: list[Plan], damage: object) -> None:
    get(plan)
    (folder,) = of_plans(root)
    damage(folder)  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(plan)
    assert len(compilations) == 2
    get(plan)
    assert len(compilations) == 2, "the rebuilt module is found again"
    assert_right(SPEC)


def test_a_folder_that_others_may_write_to_is_not_trusted(root: Path, plan: Plan, compilations: list[Plan]) -> None:
    get(plan)
    root.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others may write"):
        get(plan)
    assert len(compilations) == 2


def test_a_cache_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "file"))
    cache._warned.clear()
    with pytest.warns(RuntimeWarning, match=folders.CACHE_VARIABLE):
        assert get(plan).main.function.arguments


def test_many_processes_at_once(root: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CONVOLVE], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert float(out) == EXPECTED_SUM
    convolution, packing = of_plans(root)
    assert convolution.name != packing.name
    assert not list(root.glob(".staging-*"))


def test_threads_compile_once(root: Path, plan: Plan, compilations: list[Plan]) -> None:
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: loader.get_loaded(plan, host_target(2)), range(8)))
    assert len(compilations) == 1
    assert all(entry is loaded[0] for entry in loaded)


def test_no_temporary_folder_is_needed(root: Path, tmp_path: Path) -> None:
    """LLVM ends the process when the temporary folder's disk is full; nothing is written there."""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "none")}
    out = subprocess.run([sys.executable, "-c", CONVOLVE], env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) == EXPECTED_SUM


def test_no_compiler_or_linker_is_needed(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PATH": str(empty)}
    for name in ("CXX", "CC"):
        environment.pop(name, None)
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", CONVOLVE], env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        assert float(out.stdout) == EXPECTED_SUM


class TestKey:
    """Whatever the machine code depends on changes its key."""

    def test_equal_things_have_equal_keys(self, plan: Plan) -> None:
        again = make_plan(Conv3DSpec.parse(SPEC.key()), resolve(None, 2))
        assert artifact_key(again, resolve(None, 2)) == artifact_key(plan, host_target(2))

    def test_spec(self, plan: Plan) -> None:
        key = artifact_key(plan, host_target(2))
        assert artifact_key(replace(plan, spec=replace(SPEC, bias=False)), host_target(2)) != key

    def test_plan(self, plan: Plan) -> None:
        keys = {artifact_key(plan, host_target(2))}
        keys.add(artifact_key(replace(plan, algorithm="other"), host_target(2)))
        keys.add(artifact_key(replace(plan, variant=replace(plan.variant, columns=99)), host_target(2)))
        keys.add(artifact_key(replace(plan, decisions={**plan.decisions, "depth": 99}), host_target(2)))
        assert len(keys) == 4

    def test_the_origin_does_not_matter(self, plan: Plan) -> None:
        moved = replace(plan, origin="elsewhere")
        assert artifact_key(moved, host_target(2)) == artifact_key(plan, host_target(2))

    def test_target(self, plan: Plan) -> None:
        targets = [host_target(2), host_target(3), resolve({"kind": "llvm", "mcpu": "haswell"}, 2)]
        assert len({artifact_key(plan, target) for target in targets}) == 3

    def test_versions(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = {artifact_key(plan, host_target(2))}
        versions = artifact._versions()
        for name in versions:
            changed = {**versions, name: "0"}
            monkeypatch.setattr(artifact, "_versions", lambda changed=changed: changed)
            keys.add(artifact_key(plan, host_target(2)))
        assert len(keys) == 1 + len(versions)

    def test_sources(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        key = artifact_key(plan, host_target(2))
        monkeypatch.setattr(artifact, "source_hash", lambda: "other")
        assert artifact_key(plan, host_target(2)) != key

    @pytest.mark.parametrize("part", artifact.COMPILING)
    def test_every_part_counts(
        self, plan: Plan, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_hash: None
    ) -> None:
        key, places = artifact_key(plan, host_target(2)), artifact.sources()
        copy = tmp_path / places[part].name
        if places[part].is_dir():
            shutil.copytree(places[part], copy)
            changed = sorted(copy.rglob("*.py"))[-1]
        else:
            changed = Path(shutil.copy(places[part], copy))
        monkeypatch.setattr(artifact, "sources", lambda: {**places, part: copy})
        assert artifact_key(plan, host_target(2)) == key, "it does not matter where it lies"
        artifact.source_hash.cache_clear()
        assert artifact_key(plan, host_target(2)) == key
        changed.write_text(changed.read_text() + "# changed\n")
        artifact.source_hash.cache_clear()
        assert artifact_key(plan, host_target(2)) != key


@pytest.fixture
def fresh_hash() -> Iterator[None]:
    artifact.source_hash.cache_clear()
    yield
    artifact.source_hash.cache_clear()


#: Compiles one plan of each algorithm without the package's own `__init__`, which imports all that runs a layer.
ONLY_COMPILE = """
import importlib.util, sys, types
found = importlib.util.find_spec("tvm_conv3d")
bare = types.ModuleType("tvm_conv3d")
bare.__path__ = found.submodule_search_locations
sys.modules["tvm_conv3d"] = bare
from dataclasses import replace
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.build import compile_plan
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import resolve, traits_of
toolkit.find_nvcc = toolkit.find_nvrtc = lambda: None  # they take long
spec = Conv3DSpec(1, (2, 4, 4), 16, 16, (3, 3, 3), pads=((1, 1),) * 3)
specs = (spec, replace(spec, groups=16), replace(spec, groups=16, data_format="channels_first"))
for target in (resolve(None, 2), resolve("cuda:sm_80", 1)):
    for algorithm in algorithms(target.kind).values():
        for spec in specs:
            variants = algorithm.variants(spec, traits_of(target))
            if variants:
                compile_plan(Plan(spec, algorithm.name, variants[0], {}), target)
                break
print("\\n".join(name for name in sys.modules if name.startswith("tvm_conv3d.")))
"""


def uncovered(imported: Iterable[str], parts: Iterable[str]) -> set[str]:
    """Modules that are of none of the parts; packages that only hold some have no code that could change."""

    def covered(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in parts) or _is_empty(name)

    return {name for name in imported if not covered(name)}


def _is_empty(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return all(isinstance(node, ast.Expr) for node in ast.parse(Path(spec.origin).read_text()).body)


def test_all_that_is_imported_while_compiling_is_in_the_key() -> None:
    out = subprocess.run([sys.executable, "-c", ONLY_COMPILE], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    imported = out.stdout.split()
    assert uncovered(imported, artifact.COMPILING) == set()
    # and the key is of nothing else, but for the code of functions that no plan describes
    for part in artifact.COMPILING:
        others = [other for other in artifact.COMPILING if other != part]
        assert bool(uncovered(imported, others)) == (part != "tvm_conv3d.runtime.helper_code"), part


def test_another_tvm_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = artifact.metadata.version
    monkeypatch.setattr(
        artifact.metadata, "version", lambda name: "0.1.15.post2" if name == "apache-tvm-ffi" else real(name)
    )
    artifact.check_versions.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"apache-tvm-ffi 0\.1\.15\.post2.*pip install.*==0\.1\.14"):
            artifact.check_versions()
    finally:
        artifact.check_versions.cache_clear()


def test_the_installed_versions_are_the_pinned_ones() -> None:
    artifact.check_versions.cache_clear()
    artifact.check_versions()


def test_weights_are_packed_once_a_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_conv3d import Conv3D

    calls = []
    real = packing.on_cpu
    monkeypatch.setattr(packing, "on_cpu", lambda *a: (calls.append(1), real(*a))[1])
    layer = Conv3D(4, 2)
    x = np.ones((1, 3, 4, 5, 3), np.float32)
    first = layer(x)
    layer(x)
    assert len(calls) == 1
    layer.set_weights([2 * w for w in layer.get_weights()])
    np.testing.assert_allclose(layer(x), 2 * first, rtol=1e-6)
    assert len(calls) == 2
