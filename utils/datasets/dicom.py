"""Radiographs in DICOM files, as grey images of 16 bits. Read by pydicom, which is only needed for them."""
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import InputError
from utils.grey import find_maximum

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MARK, MARK_START = b"DICM", 128  # what every DICOM file has there
SUFFIXES = (".dcm", ".dicom")
WHITE = 65535
FAR = 1e9  # beyond all values
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class DicomImage:
    """`pixels`: uint16, (H, W), 0 is black. `patient` is "" where the file doesn't say."""
    pixels: np.ndarray
    patient: str


def is_dicom(path: Path) -> bool:
    """Whether a file is in DICOM's format, whatever its name."""
    with path.open("rb") as file:
        return file.read(MARK_START + len(MARK)).endswith(MARK)


def read_dicom(path: Path) -> DicomImage:
    """Reads one radiograph: rescaled and windowed as the file says (by its first window), black and white as they are
    shown. Where there is no window, all bits that the file says it has are from black to white.

    Raises:
        InputError: the file isn't readable, holds no image or more than one, or pydicom is missing.
    """
    try:
        from pydicom import dcmread
    except ImportError:
        raise InputError(f"{path}: is a DICOM file; `python -m pip install pydicom` to read it") from None
    remedy = "export it again"
    try:
        dataset = dcmread(path, force=not is_dicom(path))  # older files have no mark
        if "PixelData" not in dataset:
            raise InputError(f"{path}: holds no image; take it out of the folder")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{path}: holds {dataset.NumberOfFrames} images; save each one in a file of its own")
        if (syntax := _find_syntax(dataset)).is_compressed:
            remedy = ("export it uncompressed, or install the decoders (`python -m pip install pylibjpeg "
                      "pylibjpeg-libjpeg pylibjpeg-openjpeg`, and `pyjpegls` for JPEG-LS)")
        dataset.file_meta.TransferSyntaxUID = syntax
        pixels = _show(dataset)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file, or a compression without its decoder, leads to
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: its image can't be read ({reason}); {remedy}") from None
    return DicomImage(pixels, str(dataset.get("PatientID") or "").strip())


def _find_syntax(dataset: "Dataset") -> "UID":
    """How a file's values are written; without a header the oldest way, which is then the standard's default."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian
    dataset.file_meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    return dataset.file_meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian


def read_spacing(path: Path) -> tuple[float, float] | None:
    """Height and width of a pixel in mm, where a DICOM file says it: of the anatomy, or else of the detector, on which
    the anatomy is larger than it is."""
    from pydicom import dcmread
    dataset = dcmread(path, stop_before_pixels=True)
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    return (float(spacing[0]), float(spacing[1])) if spacing and min(spacing) > 0 else None


def _show(dataset: "Dataset") -> np.ndarray:
    """The values as they are meant to be shown, uint16; padding, which isn't part of the image, is black."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
    bits, highest = int(dataset.BitsStored), dataset.get("HighBit")
    if highest is not None and highest != bits - 1 and not _find_syntax(dataset).is_compressed:
        raise ValueError(f"its {bits} bits end at bit {highest}")
    stored = pixel_array(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        return _scale(stored @ LUMINANCE, 0, np.iinfo(stored.dtype).max)
    if stored.ndim == 3:  # red, green and blue, whatever they are stored as
        stored = (stored @ LUMINANCE).round().astype(stored.dtype)
    elif not dataset.PhotometricInterpretation.startswith("MONOCHROME"):
        raise ValueError(f"it is of the kind {dataset.PhotometricInterpretation}")
    padding = _find_padding(dataset, stored)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown = _scale(apply_voi_lut(values.astype(int), dataset, prefer_lut=True), 0, (1 << bits) - 1)
    elif _first(dataset.get("WindowWidth")):
        with np.errstate(over="ignore"):  # of a curve that has no ends
            low, high = apply_voi_lut(np.array([-FAR, FAR]), dataset)
        shown = _scale(apply_voi_lut(values, dataset), low, high)
    else:
        shown = _scale(values, *_limits(dataset, stored[~padding], values[~padding]))
    shown = WHITE - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown
    shown[padding] = 0
    return shown


def _find_padding(dataset: "Dataset", stored: np.ndarray) -> np.ndarray:
    """Which pixels fill up the rectangle around the image, bool, (H, W); none where all would."""
    ends = [int(value) for value in map(dataset.get, ("PixelPaddingValue", "PixelPaddingRangeLimit"))
            if value is not None]
    if not ends:
        return np.zeros(stored.shape, bool)
    padding = (stored >= min(ends)) & (stored <= max(ends))
    return padding & ~padding.all()


def _limits(dataset: "Dataset", stored: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Black and white of what has no window: of its bits, or of the least that hold the image where it says 16."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    if signed or dataset.get("ModalityLUTSequence") or values.min() < 0:
        return float(values.min()), float(values.max())
    slope, intercept = (float(dataset.get(name) or default)
                        for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    largest = find_maximum(stored.astype(np.uint16)) if bits == 16 else (1 << bits) - 1
    return intercept, slope * largest + intercept


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (np.asarray(values, np.float64) - low) / (high - low) if high > low else np.zeros(np.shape(values))
    return (WHITE * share.clip(0, 1)).round().astype(np.uint16)


def _first(value: Any) -> float:
    """The first of the values of an element that may have several, or none."""
    return float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value or 0)
