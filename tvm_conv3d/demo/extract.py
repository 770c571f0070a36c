"""From a head scan to the brain's mask: the preprocessing of deepbrain's `extractor.py`, for any scan.

A scan is turned to the orientation of the sample (left, anterior, superior), resized to the network's 128^3 and
divided by its maximum; the probabilities go the same way back.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from skimage.transform import resize

from tvm_conv3d.demo.errors import DemoError

SIZE = (128, 128, 128)
AXES = ("L", "A", "S")
THRESHOLD = 0.5
_TO_MM = {"meter": 1e3, "micron": 1e-3}


@dataclass(frozen=True, eq=False)
class Scan:
    """A head scan in the network's orientation.

    Attributes:
        image: the scan as it was read; its grid and affine are those of the result.
        data: intensities, finite, axes to the left, anterior and superior.
        voxel: size of a cell in mm, in the order of `data`'s axes.
        volume: volume of a cell in mm^3.
    """

    image: Any
    data: np.ndarray
    voxel: tuple[float, float, float]
    volume: float

    def to_grid(self, data: np.ndarray) -> np.ndarray:
        """An array of `self.data`'s shape, turned back to the axes of `self.image`."""
        back = ornt_transform(axcodes2ornt(AXES), _orientation(self.image))
        return np.ascontiguousarray(apply_orientation(data, back)).reshape(self.image.shape)


@dataclass(frozen=True, eq=False)
class Brain:
    """The result: probabilities and mask in the network's orientation."""

    probabilities: np.ndarray
    mask: np.ndarray
    milliliters: float


def load_scan(path: Path) -> Scan:
    """Read a scan in any format that nibabel reads.

    Raises:
        DemoError: there is no such file, or it is no single three-dimensional scan.
    """
    try:
        image = nib.load(path)
    except FileNotFoundError as error:
        raise DemoError(f"There is no file {path}") from error
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError) as error:
        raise DemoError(f"{path} cannot be read: {error}. A NIfTI file (.nii, .nii.gz) is wanted.") from error
    return prepare(image, str(path))


def sample_scan(compressed: bytes) -> Scan:
    """The scan inside the sample wheel."""
    return prepare(nib.Nifti1Image.from_bytes(gzip.decompress(compressed)), "sample")


def prepare(image: Any, name: str) -> Scan:
    """Check a scan and turn it to the network's orientation; see :func:`load_scan`."""
    shape = getattr(image, "shape", ())
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise DemoError(f"{name}: one three-dimensional scan is wanted. Received: shape {shape}" + _hint(shape))
    if not np.isfinite(image.affine).all() or not np.linalg.det(image.affine[:3, :3]):
        raise DemoError(f"{name}: the affine has no volume, so orientation and size are unknown:\n{image.affine}")
    data = _intensities(image, name).reshape(shape[:3])
    if data.min() == data.max():
        raise DemoError(f"{name}: every voxel is {data.min():g}. A head scan is wanted.")
    turn = ornt_transform(_orientation(image), axcodes2ornt(AXES))
    scale = _millimeters(image)
    sizes = scale * nib.affines.voxel_sizes(image.affine)
    order = np.argsort(_orientation(image)[:, 0])
    voxel = tuple(float(sizes[axis]) for axis in order)
    volume = float(abs(np.linalg.det(image.affine[:3, :3]))) * scale**3
    return Scan(image, apply_orientation(data, turn), voxel, volume)  # type: ignore[arg-type]


def preprocess(data: np.ndarray) -> np.ndarray:
    """The network's input for a scan: (1, 128, 128, 128, 1), float32, maximum 1.

    Raises:
        DemoError: no intensity is positive.
    """
    resized = resize(data, SIZE, mode="constant", anti_aliasing=True)
    maximum = resized.max()
    if not maximum > 0:
        raise DemoError(f"No voxel of the scan is positive (maximum {data.max():g}). A T1-weighted scan is wanted.")
    return (resized / maximum).astype(np.float32).reshape(1, *SIZE, 1)


def postprocess(scan: Scan, probabilities: np.ndarray) -> Brain:
    """The network's output on the grid of `scan.data`."""
    fine = resize(probabilities.reshape(SIZE), scan.data.shape, mode="constant", anti_aliasing=True)
    mask = fine > THRESHOLD
    return Brain(fine, mask, float(mask.sum()) * scan.volume / 1e3)


def save_mask(scan: Scan, brain: Brain, path: Path) -> None:
    """Write the mask as NIfTI (uint8) with the grid, the affine and the geometry codes of the scan."""
    kind = nib.Nifti2Image if isinstance(scan.image, nib.Nifti2Image) else nib.Nifti1Image
    source = scan.image.header if isinstance(scan.image, nib.Nifti1Pair) else None
    header = None if source is None else source.copy()
    mask = kind(scan.to_grid(brain.mask.astype(np.uint8)), scan.image.affine, header)
    mask.set_data_dtype(np.uint8)
    mask.header.set_slope_inter(1, 0)
    mask.header["cal_min"], mask.header["cal_max"] = 0, 1
    mask.header["descrip"] = b"brain mask"
    if source is None:
        mask.header.set_xyzt_units("mm")
    nib.save(mask, path)


def _intensities(image: Any, name: str) -> np.ndarray:
    dtype = image.get_data_dtype()
    if dtype.fields is not None:
        raise DemoError(f"{name}: a scan of intensities is wanted. Received: colours ({dtype})")
    try:
        if dtype.kind == "c":
            data = np.abs(np.asanyarray(image.dataobj)).astype(np.float64)
        else:
            data = image.get_fdata(caching="unchanged")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DemoError(f"{name}: the data cannot be read, the file seems damaged: {error}") from error
    finite = np.isfinite(data)
    if not finite.all():
        warnings.warn(f"{name}: {np.count_nonzero(~finite)} voxels are not finite; they count as 0", stacklevel=4)
        data = np.where(finite, data, 0.0)
    return data


def _orientation(image: Any) -> np.ndarray:
    return io_orientation(image.affine)


def _millimeters(image: Any) -> float:
    """Millimeters in one unit of the affine."""
    units = getattr(image.header, "get_xyzt_units", lambda: ("mm", "sec"))()
    return _TO_MM.get(units[0], 1.0)


def _hint(shape: tuple[int, ...]) -> str:
    return ". Choose one volume of the series (nibabel: `image.slicer[..., 0]`)" if len(shape) > 3 else ""
