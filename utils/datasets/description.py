"""What is particular to a data set, read from a file: the only place that states it.

Ours lie in `utils/datasets/descriptions/<name>.toml`; for your own data write `<data_dir>/<name>/description.toml`. A
file's keys are the fields of `DatasetDescription`; its tables are the other classes here. Paths are relative to the
data set's own folder `<data_dir>/<name>`.
"""
import tomllib
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from utils.errors import InputError
from utils.paths import DATA

FOLDER = Path(__file__).parent / "descriptions"
OWN = "description.toml"
DATASET_NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
SPLITS = ("train", "val", "test")
UNLABELED = ("not_annotated", "rest_of_train")


@dataclass(frozen=True)
class AnnotationFile:
    """A CVAT file, or only those of its images whose `subset` is this one."""
    file: str
    subset: str | None = None
    in_project: bool = False  # the path is relative to the project's top level


@dataclass(frozen=True)
class CvatMasks:
    """Masks drawn in CVAT (kind = "cvat"), at the size of the original images."""
    train: tuple[AnnotationFile, ...]
    val: tuple[AnnotationFile, ...]
    test: tuple[AnnotationFile, ...]
    attribute: str | None = None  # the attribute of a shape that names its label; else CVAT's own label does
    mirror_stems_with: str | None = None  # the images of these stems are mirrored ones, the drawings are not
    unlabeled_ground_truth: tuple[AnnotationFile, ...] = ()  # known masks of unlabeled images, for measuring only


@dataclass(frozen=True)
class StoredMasks:
    """Masks in one HDF5 file (kind = "mask_store"), split by sorted stems: first `train`, then `val`, the rest test."""
    file: str
    train: int
    val: int


@dataclass(frozen=True)
class LabelMaps:
    """One grey PNG per image in `folder` (kind = "label_maps"): 0 is background, value v the v-th label; split by
    sorted stems as `StoredMasks`."""
    folder: str
    train: int
    val: int


@dataclass(frozen=True)
class Metadata:
    """A CSV table with one row per image: which images count, and which of them are mirrored (column -> value)."""
    file: str
    stem_column: str
    keep: dict[str, str]
    mirror: dict[str, str] | None = None


@dataclass(frozen=True)
class StemList:
    """A CSV file, one column of which lists stems."""
    file: str
    column: str


@dataclass(frozen=True)
class DatasetDescription:
    """One data set.

    labels               in channel order
    input_size           (H, W) of the network's input
    mean, std            of the training images at input size, scaled to [0, 1]
    pos_weight     weight of the foreground in the loss, per label: background over foreground pixels of the
                         training masks (scripts.measure_dataset measures these three)
    unlabeled           "not_annotated": the images without annotation; "rest_of_train": the training images after the
                         labeled ones
    training_order       "n labeled images" are the first n of this list; else of the sorted stems
    unlabeled_sample    the fixed sample of unlabeled images; else a seeded one
    prepare              the command that puts the images in place
    max_grey_value       the largest grey value, where files of 16 bits hold fewer (4095: 12 bits)
    """
    name: str
    labels: tuple[str, ...]
    input_size: tuple[int, ...]
    image_folder: str
    prepare: str
    unlabeled: str
    sam_type: str
    masks: CvatMasks | StoredMasks | LabelMaps
    mean: float = 0
    std: float = 0
    pos_weight: tuple[float, ...] = ()
    metadata: Metadata | None = None
    training_order: StemList | None = None
    unlabeled_sample: StemList | None = None
    left_out_of_averages: tuple[str, ...] = ()
    image_suffix: str = ".png"
    max_grey_value: int | None = None


MEASURED = ("mean", "std", "pos_weight")  # what may be missing until it was measured
MASK_KINDS = {"cvat": CvatMasks, "mask_store": StoredMasks, "label_maps": LabelMaps}


def load_description(name: str, data_dir: Path = DATA, measured: bool = True) -> DatasetDescription:
    """The description of a data set by its name: one of ours, or else `data_dir/<name>/description.toml`.

    Args:
        measured: whether it must have the keys of `MEASURED`
    Raises:
        InputError: there is no such data set, or its file is wrong; the message says where.
    """
    if name in DATASET_NAMES:
        return read_description(FOLDER / f"{name}.toml", name, measured)
    own = data_dir / name / OWN
    if Path(name).name != name or not own.is_file():
        raise InputError(f"there is no data set {name!r}; known are {', '.join(DATASET_NAMES)}, and what a file "
                         f"<data_dir>/<name>/{OWN} describes")
    return read_description(own, name, measured)


def read_description(path: Path, name: str, measured: bool = True) -> DatasetDescription:
    """Reads one file as the data set `name`. Raises InputError as `load_description` does."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error}); correct it") from None
    if measured and (missing := [key for key in MEASURED if key not in table]):
        raise InputError(f"{path}: {missing[0]} is missing; `python -m scripts.measure_dataset --dataset {name}` "
                         "measures what to write there")
    try:
        description = _build(DatasetDescription, {"name": name, **table}, "")
        _check(description)
        if measured:
            _check_measured(description)
    except ValueError as error:
        raise InputError(f"{path}: {error}; see utils/datasets/description.py for what a description holds") from None
    return description


def _check(description: DatasetDescription) -> None:
    if not description.labels or len(set(description.labels)) != len(description.labels):
        raise ValueError("labels must be given, each once")
    if taken := sorted({"stem", "mean"} & set(description.labels)):
        raise ValueError(f"the label {taken[0]!r} is the name of a column of the results; call it something else")
    if len(description.input_size) != 2 or min(description.input_size) < 1:
        raise ValueError("input_size needs two numbers of at least 1, height and width")
    if description.unlabeled not in UNLABELED:
        raise ValueError(f"unlabeled is {description.unlabeled!r}, must be one of {', '.join(UNLABELED)}")
    if description.max_grey_value is not None and not 0 < description.max_grey_value <= 65535:
        raise ValueError("max_grey_value must be from 1 to 65535")
    if not isinstance(description.masks, CvatMasks) and min(description.masks.train, description.masks.val) < 1:
        raise ValueError("masks.train and masks.val must be 1 or more")


def _check_measured(description: DatasetDescription) -> None:
    count, weights = len(description.labels), description.pos_weight
    if len(weights) != count or min(weights) <= 0:
        raise ValueError(f"pos_weight needs {count} numbers above 0, one per label, has {len(weights)}")
    if description.std <= 0:
        raise ValueError("std must be above 0")


def _build(cls: type, table: dict, where: str) -> object:
    """Makes a dataclass of a TOML table. Raises ValueError for unknown or missing keys and values of a wrong type."""
    hints = get_type_hints(cls)
    required = {field.name for field in fields(cls) if field.default is MISSING}
    if unknown := sorted(set(table) - set(hints)):
        raise ValueError(f"unknown key {where}{unknown[0]} (known: {', '.join(hints)})")
    if missing := sorted(required - set(table)):
        raise ValueError(f"{where}{missing[0]} is missing")
    return cls(**{key: _convert(value, hints[key], f"{where}{key}") for key, value in table.items()})


def _convert(value: object, hint: type, where: str) -> object:
    """The value of a TOML key as the type of its field."""
    if hint == CvatMasks | StoredMasks | LabelMaps:
        return _build_masks(value, where)
    if isinstance(hint, types.UnionType):  # optional
        hint = get_args(hint)[0]
    if is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, f"{where}.")
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_convert(item, get_args(hint)[0], where) for item in value)
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: _convert(item, get_args(hint)[1], f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} has a value of the wrong type: {value!r}")
    return value


def _build_masks(value: object, where: str) -> CvatMasks | StoredMasks | LabelMaps:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in MASK_KINDS:
        raise ValueError(f"{where}.kind is {kind!r}, must be one of {', '.join(MASK_KINDS)}")
    return _build(MASK_KINDS[kind], {key: item for key, item in value.items() if key != "kind"}, f"{where}.")
