"""DICOM as cameras and archives write it; expected values are by the standard's formulas, from what was stored."""
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import JPEGLosslessSV1, RLELossless

from tests.dicom_files import make_dicom
from utils.datasets.dicom import read_dicom
from utils.errors import InputError

SIGNED = np.round(np.linspace(-20000, 20000, 48 * 80)).reshape(48, 80).astype(np.int16)


def read(path: Path, dataset: Dataset) -> np.ndarray:
    """As shares of white."""
    dataset.save_as(path, enforce_file_format=True)
    return read_dicom(path).pixels / 65535


def test_signed_values_that_are_farther_apart_than_their_type_holds(tmp_path):
    expected = (SIGNED.astype(float) + 20000) / 40000
    np.testing.assert_allclose(read(tmp_path / "a.dcm", make_dicom(SIGNED)), expected, atol=1e-4)


@pytest.mark.parametrize("monochrome", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_changes_nothing_else(tmp_path, monochrome):
    stored = (SIGNED // 20).copy()
    stored[:10, :20] = -2000
    dataset = make_dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=monochrome)
    rows, columns = np.mgrid[:48, :80]
    inside = (rows >= 10) | (columns >= 20)
    expected = np.where(inside, (stored - float(stored[inside].min())) / float(np.ptp(stored[inside])), 0)
    expected = np.where(inside, 1 - expected, 0) if monochrome == "MONOCHROME1" else expected
    np.testing.assert_allclose(read(tmp_path / "a.dcm", dataset), expected, atol=1e-4)


def test_a_palette_is_looked_up(tmp_path):
    stored = np.arange(240, dtype=np.uint8).reshape(12, 20)
    table = (65535 - 257 * np.arange(256)).astype("<u2")
    palette = {f"{color}PaletteColorLookupTable{part}": value for color in ("Red", "Green", "Blue")
               for part, value in (("Descriptor", [256, 0, 16]), ("Data", table.tobytes()))}
    shown = read(tmp_path / "a.dcm", make_dicom(stored, PhotometricInterpretation="PALETTE COLOR", **palette))
    np.testing.assert_allclose(shown, 1 - stored / 255, atol=1e-4)


def test_files_without_the_mark_of_dicom(tmp_path):
    """As before its third version."""
    stored = np.arange(240, dtype=np.uint8).reshape(12, 20)
    buffer = DicomBytesIO()
    buffer.is_little_endian = buffer.is_implicit_VR = True
    write_dataset(buffer, make_dicom(stored))
    (tmp_path / "a.dcm").write_bytes(buffer.getvalue())
    np.testing.assert_allclose(read_dicom(tmp_path / "a.dcm").pixels / 65535, stored / 255, atol=1e-4)


def test_what_is_compressed_needs_a_decoder_and_what_is_cut_off_does_not(tmp_path):
    stored = (257 * np.arange(240)).astype(np.uint16).reshape(12, 20)
    dataset = make_dicom(stored)
    dataset.compress(RLELossless)
    np.testing.assert_allclose(read(tmp_path / "rle.dcm", dataset), stored / 65535, atol=1e-4)
    dataset = make_dicom(stored)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    with pytest.raises(InputError, match=r"export it uncompressed, or install the decoders \(`python -m pip install"):
        read(tmp_path / "jpeg.dcm", dataset)
    make_dicom(stored).save_as(tmp_path / "cut.dcm", enforce_file_format=True)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"less than expected .*; export it again$"):
        read_dicom(tmp_path / "cut.dcm")
    with pytest.raises(InputError, match="its 12 bits end at bit 15"):
        read(tmp_path / "high.dcm", make_dicom(stored, BitsStored=12, HighBit=15))
