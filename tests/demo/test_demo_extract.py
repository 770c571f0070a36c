"""Scans in, masks out: orientations, voxel sizes, data types, and what is no scan at all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="the demo's packages are not installed")
pytest.importorskip("skimage", reason="the demo's packages are not installed")

from tvm_conv3d.demo.errors import DemoError  # noqa: E402
from tvm_conv3d.demo.extract import SIZE, Brain, load_scan, postprocess, prepare, preprocess, save_mask  # noqa: E402

SHAPE = (6, 7, 8)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 3.0, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]])
ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]


def sample() -> Any:
    """A scan in the network's own orientation, no two voxels alike."""
    data = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    return nib.Nifti1Image(data, AFFINE)


def turned(image: Any, axes: str) -> Any:
    """The same scan, stored in another orientation."""
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    return image.as_reoriented(change)


def some_brain(scan: Any) -> Brain:
    """A mask that depends on the intensities alone."""
    mask = scan.data > np.median(scan.data)
    return Brain(mask.astype(float), mask, float(mask.sum()) * scan.volume / 1e3)


def saved(scan: Any, path: Path) -> Any:
    save_mask(scan, some_brain(scan), path)
    return nib.load(path)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_any_orientation_gives_the_same_data_and_the_same_mask(axes: str, tmp_path: Path) -> None:
    image = sample()
    other = turned(image, axes)
    assert "".join(nib.aff2axcodes(other.affine)) == axes
    scan = prepare(other, axes)
    np.testing.assert_array_equal(scan.data, image.get_fdata())
    assert scan.voxel == pytest.approx((2.0, 3.0, 1.5))
    assert scan.volume == pytest.approx(9.0)
    mask = saved(scan, tmp_path / "mask.nii.gz")
    assert mask.shape == other.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, other.affine)
    expected = other.get_fdata() > np.median(image.get_fdata())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_oblique_affine_keeps_grid_and_volume(tmp_path: Path) -> None:
    angle = 0.4
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = AFFINE.copy()
    affine[:3, :3] = rotation @ AFFINE[:3, :3]
    scan = prepare(nib.Nifti1Image(sample().get_fdata(), affine), "oblique")
    assert scan.volume == pytest.approx(9.0) and scan.voxel == pytest.approx((2.0, 3.0, 1.5))
    np.testing.assert_allclose(saved(scan, tmp_path / "mask.nii").affine, affine, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float32", "float64", ">i2"])
def test_any_data_type(dtype: str, tmp_path: Path) -> None:
    data = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 100).astype(dtype)
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=np.dtype(dtype).newbyteorder("=")), tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(load_scan(tmp_path / "scan.nii.gz").data, data)


def test_scale_factors_count(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scan.nii")
    scan = load_scan(tmp_path / "scan.nii")
    assert (scan.data.min(), scan.data.max()) == (-3, 0.5 * (np.prod(SHAPE) - 1) - 3)
    mask = saved(scan, tmp_path / "mask.nii")
    assert set(np.unique(mask.get_fdata())) == {0, 1}


def test_complex_scan_counts_by_magnitude() -> None:
    data = sample().get_fdata()
    np.testing.assert_allclose(prepare(nib.Nifti1Image((data * 1j).astype(np.complex64), AFFINE), "c").data, data)


def test_series_of_one_volume_keeps_its_grid(tmp_path: Path) -> None:
    scan = prepare(nib.Nifti1Image(sample().get_fdata()[..., None], AFFINE), "series")
    assert scan.data.shape == SHAPE
    assert saved(scan, tmp_path / "mask.nii.gz").shape == (*SHAPE, 1)


def test_geometry_codes_and_units_are_kept(tmp_path: Path) -> None:
    image = sample()
    image.set_sform(AFFINE, code="mni")
    image.set_qform(AFFINE, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    mask = saved(prepare(image, "scan"), tmp_path / "mask.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (4, 1)
    assert mask.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("kind", ["MGHImage", "Nifti2Image", "AnalyzeImage"])
def test_other_formats(kind: str, tmp_path: Path) -> None:
    suffix = {"MGHImage": "mgz", "Nifti2Image": "nii", "AnalyzeImage": "img"}[kind]
    nib.save(getattr(nib, kind)(sample().get_fdata().astype(np.float32), AFFINE), tmp_path / f"scan.{suffix}")
    scan = load_scan(tmp_path / f"scan.{suffix}")
    assert scan.volume == pytest.approx(9.0)
    mask = saved(scan, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, scan.image.affine)


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
def test_volume_in_any_unit(unit: str, scale: float) -> None:
    image = nib.Nifti1Image(sample().get_fdata(), np.diag([*np.diag(AFFINE)[:3] / scale, 1]))
    image.header.set_xyzt_units(unit)
    assert prepare(image, "scan").volume == pytest.approx(9.0)


def test_preprocessing_scales_to_the_maximum() -> None:
    image = preprocess(sample().get_fdata())
    assert image.shape == (1, *SIZE, 1) and image.dtype == np.float32
    assert image.max() == 1


def test_probabilities_come_back_to_the_scans_grid() -> None:
    scan = prepare(sample(), "scan")
    left = np.zeros((1, *SIZE, 1), np.float32)
    left[:, : SIZE[0] // 2] = 1
    brain = postprocess(scan, left)
    assert brain.mask.shape == SHAPE
    assert brain.mask[:3].all() and not brain.mask[3:].any()
    assert brain.milliliters == pytest.approx(9.0 * np.prod(SHAPE) / 2 / 1000)


def test_values_that_are_not_finite_count_as_zero_with_a_warning() -> None:
    data = sample().get_fdata()
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    with pytest.warns(UserWarning, match="2 voxels are not finite"):
        scan = prepare(nib.Nifti1Image(data, AFFINE), "scan")
    assert scan.data[0, 0, 0] == scan.data[1, 1, 1] == 0
    assert np.isfinite(preprocess(scan.data)).all()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.ones((6, 7)), "one three-dimensional scan"),
        (np.ones((6, 7, 8, 3)), "Choose one volume"),
        (np.ones((6, 7, 8, 1, 2)), "Choose one volume"),
        (np.full(SHAPE, 7.0), "every voxel is 7"),
        (np.full(SHAPE, np.nan), "every voxel is 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* not finite")
def test_what_is_no_scan(data: np.ndarray, text: str) -> None:
    with pytest.raises(DemoError, match=text):
        prepare(nib.Nifti1Image(data, AFFINE), "scan")


def test_colours_are_no_scan() -> None:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(DemoError, match="colours"):
        prepare(nib.Nifti1Image(rgb, AFFINE), "scan")


def test_affine_without_volume() -> None:
    class Flat:
        shape = SHAPE
        affine = np.diag([1.0, 1.0, 0.0, 1.0])

    with pytest.raises(DemoError, match="affine has no volume"):
        prepare(Flat(), "scan")


def test_negative_scan_is_refused() -> None:
    with pytest.raises(DemoError, match="No voxel of the scan is positive"):
        preprocess(-1 - sample().get_fdata())


@pytest.mark.parametrize("case", ["missing", "text", "truncated", "folder", "empty"])
def test_unreadable_files(case: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    if case == "text":
        path.write_text("no scan")
    elif case == "truncated":
        nib.save(sample(), path)
        path.write_bytes(path.read_bytes()[:-200])
    elif case == "folder":
        path.mkdir()
    elif case == "empty":
        path.write_bytes(b"")
    with pytest.raises(DemoError, match=r"There is no file|cannot be read"):
        load_scan(path)


@pytest.mark.parametrize("found", ["some", "none", "all"])
def test_picture(found: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the demo's packages are not installed")
    from tvm_conv3d.demo.picture import save_picture

    scan = prepare(sample(), "scan")
    mask = {"some": scan.data > 100, "none": scan.data < 0, "all": scan.data >= 0}[found]
    save_picture(scan, Brain(mask.astype(float), mask, 1.0), tmp_path / "brain.png")
    assert (tmp_path / "brain.png").read_bytes().startswith(b"\x89PNG")
