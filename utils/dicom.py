"""DICOM files as grey values. By the package pydicom, which nothing else needs."""
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
MAGIC = b"DICM"  # after 128 bytes


def is_dicom(path: Path) -> bool:
    """By its suffix, or where it has none by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == MAGIC
    except OSError:
        return False


def read_dicom(path: Path) -> np.ndarray:
    """The radiograph in a DICOM file as its header says that it is shown: rescaled, within its first window, and 0 as
    black.

    Without a window the lowest value of the image is black and the highest one white.

    Returns:
        uint16, (H, W), from 0 to 65535
    Raises:
        InputError: pydicom isn't installed, or the file isn't a readable grey image of one frame.
    """
    try:
        import pydicom  # optional
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise InputError(f"{path}: DICOM files need the package pydicom; run `python -m pip install pydicom`") from None
    try:
        header = pydicom.dcmread(path)
        stored = header.pixel_array
        interpretation = header.PhotometricInterpretation
        values, window = apply_modality_lut(stored, header), _find_window(header)
        shown = (values if window else apply_voi_lut(values, header)).astype(np.float64)
    except Exception as error:  # pydicom and its decoders raise whatever the file leads to
        raise InputError(f"{path}: not a readable DICOM image ({' '.join(str(error).split())}); replace the file, or "
                         "save the image as PNG") from None
    if stored.ndim != 2 or not interpretation.startswith("MONOCHROME"):
        raise InputError(f"{path}: is {interpretation} of shape {stored.shape}; a radiograph is one grey image")
    low, high = window or (shown.min(), shown.max())
    scaled = ((shown - low) / (high - low)).clip(0, 1) if high > low else shown > low
    grey = np.rint(65535 * scaled).astype(np.uint16)
    return 65535 - grey if interpretation == "MONOCHROME1" else grey


def _find_window(header: "Dataset") -> tuple[float, float] | None:
    """The values that the first linear window makes black and white (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3); None
    where there is none, or a table in its place."""
    function = header.get("VOILUTFunction", "LINEAR")
    if "WindowCenter" not in header or header.get("VOILUTSequence") or function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    center, width = (float(np.ravel(header[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return center - width / 2, center + width / 2
