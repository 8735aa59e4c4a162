"""Segmentations of many images in one HDF5 file (paper's layout).

    segmentation_mask/<stem>   bool, (C, H, W), gzip; attributes `estimated_dice` (C floats) on refined masks, `image`
                               (SHA-256 of the image file, and how it was read) on those that were made of one
    attributes                 labels (JSON: name -> channel); clearml_model_id, refine_params (JSON) as the writer says
    runs                       what made them (JSON)

Until all are there each mask is a file of its own in the folder `<name>.<digest of labels and attributes>.part`, those
that a shard makes in a sub-folder of its name.
"""
import glob
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from utils.errors import InputError
from utils.files import explain_damage
from utils.hdf5 import check_intact, new_hdf5, open_hdf5, read_origin
from utils.overlap import map_threaded
from utils.provenance import describe_run
from utils.ranks import WHOLE, Shard

GROUP, IMAGE, ESTIMATE, RUNS = "segmentation_mask", "image", "estimated_dice", "runs"
REMEDY = "restore it from a copy, or, if a stage made it, move it away and run that stage again"


class MaskStore:
    """Read access to the masks of one file. Opens the file on first use, so each worker process gets its own handle.

    Attributes:
        attributes: of the file, as text
        images: stem -> which image the mask was made of, as `AnnotatedImages.origins` says it; "" where it isn't known
        runs: that made them, as `utils.provenance.describe_run`
        stems: sorted
    """

    def __init__(self, path: Path, labels: Sequence[str]):
        """Checks the file against `labels` (channel order).

        Raises:
            InputError: the file is missing, damaged, isn't such a file, or was made for other labels.
        """
        self.path = path
        self._classes = len(labels)
        self._file: h5py.File | None = None
        if not path.is_file():
            raise InputError(f"{path}: no such masks; make them with a stage such as `python -m "
                             "scripts.save_segmentations`")
        with open_hdf5(path, REMEDY) as file:
            _check_labels(path, file, labels)
            self.attributes: dict[str, str] = dict(file.attrs)
            self.images: dict[str, str] = {stem: str(item.attrs.get(IMAGE, "")) for stem, item in file[GROUP].items()}
            self.runs: list[dict] = json.loads(file[RUNS][()]) if RUNS in file else []
        self.stems = sorted(self.images)

    def __contains__(self, stem: str) -> bool:
        return stem in self.images

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def _dataset(self, stem: str) -> h5py.Dataset:
        if stem not in self:
            raise InputError(f"{self.path}: holds no mask of {stem}; run the stage that wrote it again")
        if self._file is None:
            check_intact(self.path, REMEDY)
            self._file = h5py.File(self.path, "r", locking=False)
        return self._file[GROUP][stem]

    def mask(self, stem: str) -> np.ndarray:
        """The mask of one image, bool, (C, H, W).

        Raises:
            InputError: it is damaged, isn't one mask per label, or holds more than two values.
        """
        with explain_damage(self.path, f"the mask of {stem} is not readable", REMEDY):
            values = np.asarray(self._dataset(stem)[()])
        if values.ndim != 3 or len(values) != self._classes or not values.size or values.dtype.kind not in "biuf":
            raise InputError(f"{self.path}: the mask of {stem} is of shape {values.shape} and type {values.dtype}; it "
                             f"must be ({self._classes}, H, W), one channel per label, of 0 and 1; write it so")
        if values.dtype != bool and not np.isin(values, (0, 1)).all():
            raise InputError(f"{self.path}: the mask of {stem} holds other numbers than 0 and 1, such as "
                             f"{values[~np.isin(values, (0, 1))][0]}; write it as bool")
        return values.astype(bool, copy=False)

    def estimated_dice(self, stem: str) -> np.ndarray | None:
        """SAM's estimate per class, float, (C,), NaN where SAM was not asked; None for raw masks."""
        with explain_damage(self.path, "damaged", REMEDY):
            return self._dataset(stem).attrs.get(ESTIMATE)


class MaskWriter:
    """Writes masks one image at a time; a context manager, within `utils.locks.exclusive(shard.to_lock(path))`.

    What an interrupted run made is kept, and the next one resumes there, whatever its shard. A finished file that lacks
    some images, or whose masks are of other images by now, stays as it is until its successor is complete; a shard
    leaves it as it is (`utils.mask_shards`).
    """

    def __init__(self, path: Path, labels: Sequence[str], attributes: Mapping[str, str], shard: Shard = WHOLE):
        """`attributes` must equal those of masks that are there already.

        Raises:
            InputError: the file there is damaged, or was made with other labels or attributes.
        """
        self.path, self.shard = path, shard
        self.attributes = {"labels": json.dumps({name: channel for channel, name in enumerate(labels)}), **attributes}
        digest = hashlib.sha256(json.dumps(self.attributes, sort_keys=True).encode()).hexdigest()
        self.parts = path.with_name(f"{path.name}.{digest[:8]}.part")
        self.own_parts = self.parts if shard == WHOLE else self.parts / shard.name
        self._finished = MaskStore(path, labels) if path.exists() else None
        for name, value in self.attributes.items() if self._finished else ():
            if (known := self._finished.attributes.get(name)) != value:
                raise InputError(f"{path}: was made with {name} = {known}, this run has {value}; move the file away to "
                                 "start anew")

    @cached_property
    def _part_files(self) -> dict[str, Path]:
        """Name -> file of every unfinished mask."""
        return {part.name: part for part in list_parts(self.parts)}

    def _made_of(self, stem: str) -> str | None:
        """As `MaskStore.images`, of the finished or unfinished mask of an image; None where there is none."""
        part = self._part_files.get(_name_part(stem))
        if part and (origin := _read_part(part)):
            return origin[IMAGE]
        return self._finished.images.get(stem) if self._finished else None

    def missing(self, stems: Sequence[str], images: Mapping[str, str] | None = None) -> list[str]:
        """Those of `stems` that are not stored yet, in their order.

        Args:
            images: stem -> which image it shall be made of; a mask that was made of another one counts as missing
        """
        made = {stem: image for stem in stems if (image := self._made_of(stem)) is not None}
        return [stem for stem in stems if stem not in made or (images is not None and made[stem] != images[stem])]

    def __enter__(self) -> "MaskWriter":
        self.own_parts.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, stem: str, mask: np.ndarray, estimated_dice: np.ndarray | None = None, image: str = "") -> None:
        """Stores a bool mask (C, H, W), for refined ones the estimated Dice (C,), and which image it was made of."""
        part = self.own_parts / _name_part(stem)
        with new_hdf5(part, {"stem": stem, IMAGE: image}) as file:
            dataset = file.create_group(GROUP).create_dataset(stem, data=mask.astype(bool), compression="gzip",
                                                              compression_opts=1)
            if estimated_dice is not None:
                dataset.attrs[ESTIMATE] = estimated_dice
            if image:
                dataset.attrs[IMAGE] = image
        if (older := self._part_files.get(part.name, part)) != part:  # of another image, by another number of shards
            older.unlink(missing_ok=True)

    def write_all(self, masks: Iterable[tuple], images: Mapping[str, str] | None = None) -> None:
        """Stores what `masks` yields, (stem, mask) or (stem, mask, estimated Dice); each is compressed while the next
        one is computed."""
        images = images or {}
        for _ in map_threaded(lambda each: self.write(*each, image=images.get(each[0], "")), masks):
            pass

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None and self.shard == WHOLE:
            self.unite([describe_run()])
        elif error_type and not any(map(_read_part, list_parts(self.own_parts))):  # nothing to resume
            shutil.rmtree(self.own_parts)
            with suppress(OSError):  # other shards' are there
                self.parts.rmdir()

    def unite(self, new_runs: Sequence[dict]) -> None:
        """Makes one file of the finished masks and the parts, which replace those of the same image.

        Args:
            new_runs: that made the parts, as `MaskStore.runs`
        """
        parts = {origin["stem"]: part for part in list_parts(self.parts) if (origin := _read_part(part))}
        with new_hdf5(self.path, {}) as united:
            united.attrs.update(self.attributes)
            runs = [*self._finished.runs] if self._finished else []
            for run in new_runs:
                runs += [] if run in runs else [run]
            united[RUNS] = json.dumps(runs)
            group = united.create_group(GROUP)
            if self._finished:
                _copy(self.path, [stem for stem in self._finished.stems if stem not in parts], group)
            for stem in sorted(parts):
                _copy(parts[stem], [stem], group)
        for leftover in self.path.parent.glob(f"{glob.escape(self.path.name)}.*part"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def list_parts(folder: Path) -> list[Path]:
    """The files of unfinished masks in a folder, those of all shards, without what is being written."""
    return sorted(folder.rglob("[!.]*.h5"))


def _name_part(stem: str) -> str:
    """Of the file of one unfinished mask."""
    return f"{hashlib.sha256(stem.encode()).hexdigest()[:32]}.h5"


def _read_part(part: Path) -> dict[str, str]:
    """What an unfinished mask was made of; {} for one that the machine lost with its power."""
    with suppress(InputError):
        if origin := read_origin(part):
            check_intact(part, REMEDY)
            return origin
    return {}


def _copy(path: Path, stems: Sequence[str], group: h5py.Group) -> None:
    """Copies masks as they are stored from a file into a group of another one."""
    with open_hdf5(path, REMEDY) as file:
        for stem in stems:
            file.copy(file[GROUP][stem], group, stem)


def _check_labels(path: Path, file: h5py.File, labels: Sequence[str]) -> None:
    if GROUP not in file or "labels" not in file.attrs:
        raise InputError(f"{path}: holds no segmentation masks; name a file that scripts.save_segmentations wrote")
    stored = json.loads(file.attrs["labels"])
    if stored != {name: channel for channel, name in enumerate(labels)}:
        raise InputError(f"{path}: its labels {list(stored)} are not those of this data set {list(labels)}; "
                         "use masks and data of the same data set")
