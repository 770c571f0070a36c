"""Exported convolutions are right by themselves, without this package: on clean data, NaN, infinity and overflow."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi.libinfo
from tvm import libinfo

from problems import BOUNDS, WINOGRAD_BOUND, data, numpy_dtype, residual_of
from processes import VARIABLES
from tvm_conv3d.compute.shared.argument import Function
from tvm_conv3d.deploy.export import export
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange, loader
from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, Conv3DSpec, Pads

LAYER = Conv3DSpec(1, (6, 10, 12), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))

#: By name: a layer, the algorithm of its plan, and whether there is a plan that it falls back to.
LAYERS = {
    "winograd": (LAYER, "winograd", True),
    "residual": (
        replace(LAYER, data_format=CHANNELS_FIRST, post_ops=("add", "relu"), bias=False, size=(6, 12, 16)),
        "winograd",
        True,
    ),
    "groups": (replace(LAYER, groups=4, post_ops=()), "winograd", True),
    "rows": (
        replace(LAYER, channels=48, filters=48, groups=48, kernel=(7, 7, 7), pads=(Pads(3, 3),) * 3, size=(8, 16, 16)),
        "winograd_rows",
        True,
    ),
    "gradient": (replace(LAYER, channels=24, direction=DATA_GRADIENT), "winograd", True),
    "float16": (replace(LAYER, dtype="float16"), "winograd", True),
    "bfloat16": (replace(LAYER, dtype="bfloat16", data_format=CHANNELS_FIRST, size=(6, 12, 16)), "winograd", True),
    "exact": (replace(LAYER, dtype="float64", post_ops=("add",)), "direct", False),
}

FILES = {"meta.json", "module.h", "module.o", "module.s", "schedule.py"}

#: Reads arrays of files, at addresses that suit their elements only, and writes the results of both calls.
CALLER = """
#include <stdio.h>
#include <stdlib.h>
#include "module.h"

static void *room(size_t size) {{
  char *memory = malloc(size + 72);
  if (!memory) exit(2);
  return memory + 64 - (size_t)memory % 64 + 8;
}}

static void *load(const char *name) {{
  FILE *file = fopen(name, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(3);
  long size = ftell(file);
  void *memory = room((size_t)size);
  rewind(file);
  if (fread(memory, 1, (size_t)size, file) != (size_t)size) exit(4);
  fclose(file);
  return memory;
}}

static void store(const char *name, const char *end, const void *memory, size_t size) {{
  char path[256];
  snprintf(path, sizeof(path), "%s.%s", name, end);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(memory, 1, size, file) != size || fclose(file)) exit(5);
}}

int main(int argc, char **argv) {{
  void *packed = room(CONV3D_PACKED_BYTES), *out = room({bytes});
  conv3d_bind();
  if (conv3d_pack({weights}packed)) return 6;
  for (int i = 1; i < argc; ++i) {{
    if (conv3d_convolve(load(argv[i]), packed, {residual}out)) return 7;
    store(argv[i], "convolve", out, {bytes});
    if (conv3d_exact(load(argv[i]), packed, {residual}out)) return 8;
    store(argv[i], "exact", out, {bytes});
  }}
  return 0;
}}
"""

#: Two modules: sums of ones, of which each has its own number of terms.
TWO = """
#include <stdio.h>
#include <stdlib.h>
#include "first/module.h"
#include "second/module.h"

int main(void) {{
  float *ones = malloc({most} * sizeof(float)), *out = malloc({most} * sizeof(float));
  void *first = malloc(FIRST_PACKED_BYTES), *second = malloc(SECOND_PACKED_BYTES);
  for (long i = 0; i < {most}; ++i) ones[i] = 1;
  first_bind();
  second_bind();
  if (first_pack(ones, ones, first) || second_pack(ones, ones, second)) return 6;
  if (first_convolve(ones, first, out)) return 7;
  printf("%.1f ", out[{first}]);
  if (second_convolve(ones, second, out)) return 7;
  printf("%.1f", out[{second}]);
  return 0;
}}
"""

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")

_INCLUDES = [f"-I{path}" for path in (tvm_ffi.libinfo.find_include_path(), libinfo.find_include_path())]
_LIBRARIES = [Path(path).parent for path in (tvm_ffi.libinfo.find_libtvm_ffi(), libinfo.find_libtvm_runtime())]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        export(LAYERS[name][0], "llvm", folder, cores=2)
        return folder

    return folder_of


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text())


def inputs(spec: Conv3DSpec) -> dict[str, np.ndarray]:
    """By name: clean data, and such of which Winograd's algorithm makes NaN where there is none."""
    x, _, _ = data(spec)
    found = {"clean": x}
    for name, values in (("nan", [np.nan]), ("infinite", [np.inf, -np.inf]), ("mixed", [np.nan, np.inf, -np.inf])):
        spoiled = x.copy()
        spoiled.reshape(-1)[:: x.size // 7] = np.resize(values, len(spoiled.reshape(-1)[:: x.size // 7]))
        found[name] = spoiled
    if spec.dtype in ("float32", "bfloat16"):
        # sums stay finite, Winograd's intermediates do not
        found["overflow"] = (x.astype(np.float64) * 2.0**121).astype(x.dtype)
    return found


def expected(spec: Conv3DSpec, x: np.ndarray) -> np.ndarray:
    _, kernel, bias = data(spec)
    with np.errstate(invalid="ignore"):
        return oracle.finish(spec, oracle.convolve(spec, x, kernel, bias), residual_of(spec))


def assert_right(spec: Conv3DSpec, name: str, x: np.ndarray, result: np.ndarray, bound: float) -> None:
    """Finite values within the bound, and all others where the definition has them."""
    right, found = expected(spec, x), result.astype(np.float64)
    finite = np.isfinite(right)
    np.testing.assert_array_equal(np.isfinite(found), finite, err_msg=name)
    np.testing.assert_array_equal(found[~finite], right[~finite], err_msg=name)
    assert finite.any(), name
    # large values squared have no norm
    scale = np.abs(right[finite]).max()
    assert oracle.relative_error(found[finite] / scale, right[finite] / scale) < bound, name


def built(text: str, folder: Path, *sources: Path) -> Path:
    """The program of this text and object files; the compiler has nothing to remark."""
    (folder / "caller.c").write_text(text)
    command = [
        "cc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        *_INCLUDES,
        *(f"-I{source.parent}" for source in sources),
    ]
    libraries = [part for path in _LIBRARIES for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    code = ["caller.c", *map(str, sources), *libraries, "-ltvm_runtime", "-ltvm_ffi", "-lm", "-o", "caller"]
    subprocess.run([*command, *code], check=True, cwd=folder)
    return folder / "caller"


def printed(program: Path, *arguments: str) -> str:
    environment = {"TVM_NUM_THREADS": "2"}
    done = subprocess.run(
        [program, *arguments], cwd=program.parent, env=environment, stdout=subprocess.PIPE, timeout=60
    )
    assert done.returncode == 0
    return done.stdout.decode()


@needs_compiler
@pytest.mark.parametrize("name", LAYERS)
def test_a_caller_in_c(name: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    spec = LAYERS[name][0]
    _, kernel, bias = data(spec)
    for file, array in {"kernel": kernel, "bias": bias, "residual": residual_of(spec), **inputs(spec)}.items():
        if array is not None:
            (tmp_path / file).write_bytes(array.tobytes())
    weights = 'load("kernel"), ' + ('load("bias"), ' if spec.bias else "")
    residual = 'load("residual"), ' if spec.residual else ""
    size = math.prod(spec.output_shape) * numpy_dtype(spec.dtype).itemsize
    text = CALLER.format(bytes=size, weights=weights, residual=residual)
    printed(built(text, tmp_path, exported(name) / "module.o"), *inputs(spec))
    for file, x in inputs(spec).items():
        for call, bound in (("convolve", max(BOUNDS[spec.dtype], WINOGRAD_BOUND)), ("exact", BOUNDS[spec.dtype])):
            result = np.frombuffer((tmp_path / f"{file}.{call}").read_bytes(), x.dtype).reshape(spec.output_shape)
            assert_right(spec, f"{call} {file}", x, result, bound)


@needs_compiler
def test_two_modules_in_one_program(tmp_path: Path) -> None:
    specs = {"first": replace(LAYER, size=(4, 6, 16)), "second": replace(LAYER, data_format=CHANNELS_FIRST, groups=2)}
    for name, spec in specs.items():
        export(spec, "llvm", tmp_path / name, cores=2, name=name)
        functions = described(tmp_path / name)["functions"]
        assert {f"{name}_pack", f"{name}_convolve"} <= set(functions)
    most = max(max(map(math.prod, (s.input_shape, s.kernel_shape, s.output_shape))) for s in specs.values())
    # an output in the middle, whose window lies on the input
    at = {"first": np.ravel_multi_index((0, 2, 3, 8, 5), specs["first"].output_shape)}
    at["second"] = np.ravel_multi_index((0, 5, 2, 3, 8), specs["second"].output_shape)
    program = built(TWO.format(most=most, **at), tmp_path, *(tmp_path / name / "module.o" for name in specs))
    first, second = map(float, printed(program).split())
    assert (first, second) == (27 * 32 + 1, 27 * 16 + 1)


@needs_compiler
def test_the_caller_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    key, caller = re.search("`(n1_.*)`:", page), re.search("```c\n(.*?)```", page, re.DOTALL)
    assert key is not None and caller is not None
    export(Conv3DSpec.parse(key[1]), "llvm", tmp_path, cores=2)
    printed(built(caller[1], tmp_path, tmp_path / "module.o"))


@needs_compiler
def test_the_header_is_good_for_cpp(exported: Callable[[str], Path]) -> None:
    header = exported("residual") / "module.h"
    command = ["cc", "-x", "c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *_INCLUDES, "-include"]
    subprocess.run([*command, str(header), os.devnull], check=True)


#: Takes a folder with `module.o`, `meta.json` and arrays, and the name of an input; binds arguments by their names.
BY_NAME = """
import json, pathlib, sys
import numpy as np
import tvm, tvm_ffi_orcjit
folder, given = pathlib.Path(sys.argv[1]), sys.argv[2:]
about = json.loads((folder / "meta.json").read_text())
code = tvm_ffi_orcjit.default_session().load_module(str(folder / "module.o"))
def run(name, arrays):
    arguments = about["functions"][name]
    for a in arguments:
        if a["role"] == "output":
            arrays[a["name"]] = np.empty(a["shape"], a["dtype"])
    tensors = [tvm.runtime.tensor(arrays[a["name"]].reshape(a["shape"])) for a in arguments]
    code.get_function(name)(*tensors)
    for a, tensor in zip(arguments, tensors):
        arrays[a["name"]] = tensor.numpy()
    return arrays
weights = {name: np.load(folder / f"{name}.npy") for name in ("kernel", "bias")}
packed = run(about["entry"]["pack"], weights)
packed = {name.removeprefix("packed_"): array for name, array in packed.items() if name.startswith("packed_")}
for name in given:
    out = run(about["entry"]["convolve"], {**packed, "x": np.load(folder / f"{name}.npy")})["out"]
    np.save(folder / f"{name}.out.npy", out)
assert not any(name.startswith("tvm_conv3d") for name in sys.modules)
"""


def test_by_names_in_a_process_without_this_package(exported: Callable[[str], Path], tmp_path: Path) -> None:
    spec = LAYERS["winograd"][0]
    shutil.copytree(exported("winograd"), tmp_path, dirs_exist_ok=True)
    _, kernel, bias = data(spec)
    for name, array in {"kernel": kernel, "bias": bias, **inputs(spec)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    command = [sys.executable, "-c", BY_NAME, str(tmp_path), *inputs(spec)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, x in inputs(spec).items():
        assert_right(spec, name, x, np.load(tmp_path / f"{name}.out.npy"), WINOGRAD_BOUND)


@pytest.mark.parametrize("name", LAYERS)
def test_it_says_what_it_holds(name: str, exported: Callable[[str], Path]) -> None:
    spec, algorithm, fallback = LAYERS[name]
    folder = exported(name)
    assert {path.name for path in folder.iterdir()} == FILES
    about = described(folder)
    assert about["spec"] == spec.key()
    assert about["plan"]["algorithm"] == algorithm
    assert about["entry"] == {"pack": "pack", "convolve": "convolve" if fallback else "main"}
    if not fallback:
        assert set(about["functions"]) == {"pack", "main"}
        assert "exact" not in about
    else:
        assert set(about["functions"]) == {"pack", "convolve", "main", "exact", "pack_main", "pack_exact"}
        assert algorithms("llvm")[about["exact"]["plan"]["algorithm"]].exact
    functions = {name: Function.from_json(arguments) for name, arguments in about["functions"].items()}
    convolution = functions[about["entry"]["convolve"]]
    packed = {f"packed_{a.name}": (a.shape, a.dtype) for a in convolution.of("weights", "bias")}
    assert packed == {a.name: (a.shape, a.dtype) for a in functions["pack"].of("output")}
    assert not convolution.of("flags")
    assembly, script = (folder / "module.s").read_text(), (folder / "schedule.py").read_text()
    assert all(f"__tvm_ffi_{function}:" in assembly for function in functions)
    assert all(f"def {function}(" in script for function in {"main", "exact"} & set(functions))


@pytest.mark.parametrize("kind", ["nan", "infinite", "mixed", "overflow"])
def test_data_that_need_the_exact_function(kind: str, exported: Callable[[str], Path]) -> None:
    """What `main` alone makes of such data is wrong, and its flags say so: `convolve` really makes a choice."""
    spec, folder = LAYERS["winograd"][0], exported("winograd")
    functions = {name: Function.from_json(value) for name, value in described(folder)["functions"].items()}
    loaded = loader.link(Artifact((folder / "module.o").read_bytes(), functions, ""))

    def run(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        entry = loaded.functions[name]
        made = {a.name: np.empty(a.shape, a.dtype) for a in entry.function.of("output", "flags")}
        values = {key: interchange.exported(array) for key, array in {**arrays, **made}.items()}
        entry.code(*entry.function.ordered(values))
        return made

    _, kernel, bias = data(spec)
    assert bias is not None
    packed = run("pack_main", {"kernel": kernel, "bias": bias})
    weights = {"kernel": packed["packed_kernel"], "bias": packed["packed_bias"]}
    clean = run("main", {**weights, "x": inputs(spec)["clean"]})
    assert np.isfinite(clean["flags"]).all()
    x = inputs(spec)[kind]
    spoiled = run("main", {**weights, "x": x})
    assert not np.isfinite(spoiled["flags"]).all()
    with pytest.raises(AssertionError):
        assert_right(spec, kind, x, spoiled["out"], WINOGRAD_BOUND)


def test_another_machine(tmp_path: Path) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}
    written = export(LAYER, target, tmp_path, cores=4)
    assert {path.name for path in written} == FILES
    # of an ELF file's head: the machine, 183 for AArch64
    assert int.from_bytes((tmp_path / "module.o").read_bytes()[18:20], "little") == 183
    assert described(tmp_path)["entry"] == {"pack": "pack", "convolve": "convolve"}


def test_a_gpu_is_described_alike(tmp_path: Path) -> None:
    export(LAYER, "cuda:sm_80", tmp_path)
    about = described(tmp_path)
    assert about["entry"] == {"pack": "pack", "convolve": "main"}
    assert set(about["functions"]) == set(about["launches"]) == {"pack", "main"}
    assert not (tmp_path / "module.h").exists()
    assert (tmp_path / "module.bin").stat().st_size > 0


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        ("llvm", "a-b", "must be letters, digits and underscores.*name='a-b'"),
        ("cuda:sm_80", "layer", "Only a CPU's functions take a name.*name='layer'"),
    ],
)
def test_names_that_can_not_be(target: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(LAYER, target, tmp_path / "none", name=name)
    assert not (tmp_path / "none").exists()


def test_nothing_to_compile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to compile.*n0_"):
        export(replace(LAYER, batch=0), "llvm", tmp_path / "none")
    assert not (tmp_path / "none").exists()
