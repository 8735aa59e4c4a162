"""Segmentations of many images in one HDF5 file (paper's layout).

    segmentation_mask/<stem>   bool, (C, H, W), gzip; attribute `estimated_dice` (C floats) on refined masks
    attributes                 labels (JSON: name -> channel); clearml_model_id, refine_params (JSON) as the writer says

While it is being written the file is called `<name>.part`, and takes its name when everything is in it.
"""
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from utils.errors import InputError
from utils.files import atomic_path
from utils.overlap import map_threaded

GROUP = "segmentation_mask"


class MaskStore:
    """Read access to the masks of one file. Opens the file on first use, so each worker process gets its own handle."""

    def __init__(self, path: Path, labels: Sequence[str]):
        """Checks the file against `labels` (channel order).

        Raises:
            InputError: the file is missing, isn't such a file, or was made for other labels.
        """
        self.path = path
        self._file: h5py.File | None = None
        if not path.is_file():
            raise InputError(f"{path}: no such masks; make them with a stage such as `python -m "
                             "scripts.save_segmentations`")
        with _open(path) as file:
            _check_labels(path, file, labels)
            self.attributes: dict[str, str] = dict(file.attrs)
            self.stems = sorted(file[GROUP])
        self._stem_set = frozenset(self.stems)

    def __contains__(self, stem: str) -> bool:
        return stem in self._stem_set

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def _dataset(self, stem: str) -> h5py.Dataset:
        if self._file is None:
            self._file = _open(self.path)
        if stem not in self:
            raise InputError(f"{self.path}: holds no mask of {stem}; run the stage that wrote it again")
        return self._file[GROUP][stem]

    def mask(self, stem: str) -> np.ndarray:
        """The mask of one image, bool, (C, H, W)."""
        return self._dataset(stem)[()]

    def estimated_dice(self, stem: str) -> np.ndarray | None:
        """SAM's estimate per class, float, (C,), NaN where SAM was not asked; None for raw masks."""
        return self._dataset(stem).attrs.get("estimated_dice")


class MaskWriter:
    """Writes masks one image at a time; a context manager.

    An interrupted run leaves `<name>.part`, and the next one goes on in it. A finished file that lacks some images is
    extended through a copy, so that it stays valid meanwhile.
    """

    def __init__(self, path: Path, labels: Sequence[str], attributes: Mapping[str, str]):
        """`attributes` must equal those of masks that are there already.

        Raises:
            InputError: the file there was made with other labels or attributes, or another run is writing it.
        """
        self.path, self.part = path, path.with_name(path.name + ".part")
        self._attributes = {"labels": json.dumps({name: channel for channel, name in enumerate(labels)}), **attributes}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _readable(self.part):  # a kill in the middle of a write can leave a damaged file
            self.part.unlink(missing_ok=True)
        self._begun = self.part if self.part.exists() else path
        if self._begun.exists():
            with _open(self._begun) as file:
                _check_labels(self._begun, file, labels)
                self._check_attributes(self._begun, file)

    def _check_attributes(self, path: Path, file: h5py.File) -> None:
        for name, value in self._attributes.items():
            if file.attrs.get(name) != value:
                raise InputError(f"{path}: was made with {name} = {file.attrs.get(name)}, this run has {value}; "
                                 "move the file away to start anew")

    def missing(self, stems: Sequence[str]) -> list[str]:
        """Those of `stems` that are not stored yet, in their order."""
        if not self._begun.exists():
            return list(stems)
        with _open(self._begun) as file:
            done = set(file[GROUP])
        return [stem for stem in stems if stem not in done]

    def __enter__(self) -> "MaskWriter":
        if self.path.exists() and not self.part.exists():
            with atomic_path(self.part) as copy:
                shutil.copyfile(self.path, copy)
        self._file = _open(self.part, "a")
        self._file.attrs.update(self._attributes)
        self._file.require_group(GROUP)
        return self

    def write(self, stem: str, mask: np.ndarray, estimated_dice: np.ndarray | None = None) -> None:
        """Stores a bool mask (C, H, W), and for refined ones the estimated Dice (C,)."""
        dataset = self._file[GROUP].create_dataset(stem, data=mask.astype(bool), compression="gzip", compression_opts=1)
        if estimated_dice is not None:
            dataset.attrs["estimated_dice"] = estimated_dice
        self._file.flush()

    def write_all(self, masks: Iterable[tuple[str, np.ndarray] | tuple[str, np.ndarray, np.ndarray]]) -> None:
        """Stores what `masks` yields, the arguments of `write`; each is compressed while the next one is computed."""
        for _ in map_threaded(lambda each: self.write(*each), masks):
            pass

    def __exit__(self, error_type, error, traceback) -> None:
        empty = len(self._file[GROUP]) == 0
        self._file.close()
        if error_type is None:
            self.part.replace(self.path)
        elif empty:  # nothing to go on from, and its attributes may have been the mistake
            self.part.unlink()


def _open(path: Path, mode: str = "r") -> h5py.File:
    try:
        return h5py.File(path, mode)
    except BlockingIOError:
        raise InputError(f"{path}: another run is writing this file; wait until it has ended") from None
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}); delete it and run the stage again") from None


def _readable(path: Path) -> bool:
    """Whether every mask of an unfinished file can be read back."""
    try:
        with h5py.File(path, "r") as file:
            return all(dataset[()] is not None for dataset in file[GROUP].values())
    except BlockingIOError:  # locked by another run: not damaged
        return True
    except (OSError, KeyError, RuntimeError):
        return False


def _check_labels(path: Path, file: h5py.File, labels: Sequence[str]) -> None:
    if GROUP not in file or "labels" not in file.attrs:
        raise InputError(f"{path}: holds no segmentation masks; name a file that scripts.save_segmentations wrote")
    stored = json.loads(file.attrs["labels"])
    if stored != {name: channel for channel, name in enumerate(labels)}:
        raise InputError(f"{path}: its labels {list(stored)} are not those of this data set {list(labels)}; "
                         "use masks and data of the same data set")
