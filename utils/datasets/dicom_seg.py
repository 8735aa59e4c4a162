"""Masks as DICOM segmentations, written by highdicom where it is installed."""
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import atomic_path

MAKER = "SAM Carries the Burden (open reproduction)"
LONGEST_TEXT = 64  # that DICOM takes


def can_write_dicom_seg() -> bool:
    """Whether highdicom is installed."""
    return find_spec("highdicom") is not None


def write_dicom_seg(path: Path, source: Path, masks: np.ndarray, labels: Sequence[str], maker: str) -> None:
    """Writes masks of the image in a DICOM file as a binary segmentation of it: a segment with one frame per label,
    also where the image doesn't show it.

    Args:
        masks: bool, (C, H, W)
        maker: which model
    Raises:
        InputError: the image's file lacks what a segmentation must say of it.
    """
    import highdicom  # optional, and slow as the others are
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom import dcmread
    from pydicom.sr.codedict import codes
    method = highdicom.AlgorithmIdentificationSequence(maker[:LONGEST_TEXT], codes.DCM.ArtificialIntelligence, "1")
    anatomy = codes.SCT.AnatomicalStructure
    segments = [SegmentDescription(number, label[:LONGEST_TEXT], anatomy, anatomy, SegmentAlgorithmTypeValues.AUTOMATIC,
                                   method) for number, label in enumerate(labels, 1)]
    try:
        segmentation = highdicom.seg.Segmentation(
            [dcmread(source)], np.ascontiguousarray(masks.transpose(1, 2, 0))[None], SegmentationTypeValues.BINARY,
            segments, series_instance_uid=highdicom.UID(), series_number=1, sop_instance_uid=highdicom.UID(),
            instance_number=1, manufacturer=MAKER, manufacturer_model_name=maker[:LONGEST_TEXT], software_versions="1",
            device_serial_number="1", omit_empty_frames=False)
    except (AttributeError, KeyError, ValueError, TypeError) as error:  # whatever an incomplete header leads to
        raise InputError(f"{source}: no DICOM segmentation can be made of it ({error}); export it again with all that "
                         "its header should say, or take the masks as PNG") from None
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)
