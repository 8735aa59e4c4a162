"""What is particular to a data set, read from a file: the only place that states it.

Ours lie in `utils/datasets/descriptions/<name>.toml`; for your own data write `<data_dir>/<name>/description.toml`. A
file's keys are the fields of `DatasetDescription`; its tables are the other classes here, and `[masks]` one of those in
`utils/datasets/sources.py`. Paths are relative to the data set's own folder `<data_dir>/<name>`.
"""
import re
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from utils.datasets.sources import SOURCES, Count, Table
from utils.errors import InputError
from utils.grey import RANGES, GreyValues
from utils.paths import DATA

FOLDER = Path(__file__).parent / "descriptions"
OWN = "description.toml"
DATASET_NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
MEASURED = ("mean", "std", "pos_weight")  # what may be missing until it was measured
MASK_KINDS = {masks.__struct_config__.tag: masks for masks in SOURCES}
Weight = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


class Metadata(Table, frozen=True):
    """A CSV table with one row per image: which images count, and which of them are mirrored (column -> value).

    Values are compared without spaces around them and whatever their case, numbers as numbers. Where `as_is` says what
    images that aren't mirrored have, other values are an error; an empty cell is one in any case. `split_column` has
    "train", "val" or "test" for annotated images; one where it is empty counts as not annotated.
    """
    file: str
    stem_column: str
    keep: dict[str, str] = msgspec.field(default_factory=dict)
    mirror: dict[str, str] | None = None
    as_is: dict[str, str] | None = None
    split_column: str | None = None


class StemList(Table, frozen=True):
    """A CSV file, one column of which lists stems."""
    file: str
    column: str


class DatasetDescription(Table, frozen=True):
    """One data set.

    labels               in channel order
    input_size           (H, W) of the network's input
    prepare              the command that puts the images in place
    unlabeled            which images get pseudo labels. "not_annotated": those without annotation; "all_of_train": all
                         training images, the labeled ones among them; "rest_of_train": those after the labeled ones
    mean, std            of the training images at input size, scaled to [0, 1]
    pos_weight           weight of the foreground in the loss, per label: background over foreground pixels of the
                         training masks (scripts.measure_dataset measures these three)
    training_order       "n labeled images" are the first n of this list; else of the sorted stems
    unlabeled_sample     the fixed sample of unlabeled images; else a seeded one
    max_gradient_norm    gradients of a larger norm are scaled down to it in initial and final trainings
    image_suffix         of the image files, or several in a list; .PNG is .png, .jpeg is .jpg, .tiff is .tif
    image_ending         of their names beside the stem: "_0000" in 17_0000.png, whose mask is 17.png
    subfolders           whether images in folders inside `image_folder` count; their stems have the folder, as in
                         patient1__AP
    max_grey_value       white in files of 16 bits that hold fewer (4095: 12 bits)
    grey_range           how the values of a file are meant, see `utils/grey.py`: "stored", "bits" or "percentiles".
                         Left out: "bits" where there is an image of 16 bits
    invert               whether white stands for black in these files
    resize_dtype         the U-Net's input is resized as whole numbers of the file's 8 or 16 bits ("stored", as the
                         authors' scripts/save_segmentations.py does) or after it was scaled to [0, 1] ("float32")
    has_splits           false: nothing is trained on these images, so all of them count as test images
    other_places         where in <data_dir> a file or folder lies (key: the first part of its path), if it isn't in the
                         data set's own folder
    """
    name: str
    labels: tuple[str, ...]
    input_size: tuple[Count, Count]
    image_folder: str
    prepare: str
    unlabeled: Literal["not_annotated", "all_of_train", "rest_of_train"]
    sam_type: str
    masks: Union[tuple(SOURCES)]  # noqa: UP007
    mean: Annotated[float, Meta(ge=0, le=1)] = 0
    std: Annotated[float, Meta(gt=0, le=1)] = 0
    pos_weight: Annotated[tuple[Weight, ...], Meta(min_length=1)] = ()
    metadata: Metadata | None = None
    training_order: StemList | None = None
    unlabeled_sample: StemList | None = None
    left_out_of_averages: tuple[str, ...] = ()
    image_suffix: str | tuple[str, ...] = ".png"
    image_ending: str = ""
    subfolders: bool = False
    max_grey_value: Annotated[int, Meta(ge=1, le=65535)] | None = None
    grey_range: Literal[RANGES] | None = None
    invert: bool = False
    max_gradient_norm: Annotated[float, Meta(gt=0)] | None = None
    resize_dtype: Literal["stored", "float32"] = "stored"
    has_splits: bool = True
    other_places: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what no single field shows; msgspec makes a ValidationError of a ValueError."""
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be given, each once")
        if taken := sorted({"stem", "mean"} & set(self.labels)):
            raise ValueError(f"the label {taken[0]!r} is the name of a column of the results; call it something else")
        if self.pos_weight and len(self.pos_weight) != len(self.labels):
            raise ValueError(f"pos_weight needs {len(self.labels)} numbers, one per label, has {len(self.pos_weight)}")

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        return (self.image_suffix,) if isinstance(self.image_suffix, str) else self.image_suffix

    @property
    def grey(self) -> GreyValues:
        """How the values of the image files are meant."""
        return GreyValues(self.max_grey_value, self.grey_range or ("bits" if self.max_grey_value else "stored"),
                          self.invert)

    @property
    def reading(self) -> str:
        """How image files become the network's input, but for size and normalization: "stored", if they are taken as
        they are."""
        return self.resize_dtype + self.grey.name

    def locate(self, folder: Path, file: str) -> Path:
        """Where a file of the data set lies: in its `folder`, or else at its other place if it is there."""
        own, (first, *rest) = folder / file, Path(file).parts or [""]  # image_folder may be "."
        if own.exists() or first not in self.other_places:
            return own
        other = folder.parent.joinpath(self.other_places[first], *rest)
        return other if other.exists() else own


def load_description(name: str, data_dir: Path = DATA, measured: bool = True) -> DatasetDescription:
    """The description of a data set by its name: one of ours, or else `data_dir/<name>/description.toml`.

    Args:
        measured: whether it must have the keys of `MEASURED`
    Raises:
        InputError: there is no such data set, or its file is wrong; the message says where.
    """
    own = data_dir / name / OWN
    if name in DATASET_NAMES:
        if own.is_file():
            raise InputError(f"{own}: would not be read, since {name!r} is the name of one of our data sets; give the "
                             f"folder {own.parent} another name, or take this file away")
        return read_description(FOLDER / f"{name}.toml", name, measured)
    if Path(name).name != name or not own.is_file():
        raise InputError(f"there is no data set {name!r}; known are {', '.join(DATASET_NAMES)}, and what a file "
                         f"<data_dir>/<name>/{OWN} describes")
    return read_description(own, name, measured)


def read_description(path: Path, name: str, measured: bool = True) -> DatasetDescription:
    """Reads one file as the data set `name`. Raises InputError as `load_description` does."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error}); correct it") from None
    if measured and (missing := [key for key in MEASURED if key not in table]):
        raise InputError(f"{path}: {missing[0]} is missing; `python -m scripts.measure_dataset --dataset {name}` "
                         "measures what to write there")
    try:
        return msgspec.convert({**table, "name": name}, DatasetDescription)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {_explain(str(error), table)}; see utils/datasets/description.py for what a "
                         "description holds") from None


def _explain(message: str, table: dict[str, Any]) -> str:
    """msgspec's message, with what it would have taken where it met an unknown name."""
    if not message.startswith(("Object contains unknown field", "Invalid")):
        return message
    _, _, place = message.partition(" - at `$")
    return f"{message} (known: {', '.join(_known_names(place, table))})"


def _known_names(place: str, table: dict[str, Any]) -> Collection[str]:
    """The keys of the table, or the choices for the value, at a place such as `.masks.train[0]`; "" is the top."""
    if place.startswith(".masks.kind"):
        return MASK_KINDS
    hint = DatasetDescription
    for key in re.findall(r"\.(\w+)", place):
        hint = MASK_KINDS[table["masks"]["kind"]] if key == "masks" else get_type_hints(hint)[key]
        if get_origin(hint) is not Literal:
            hint = next(iter(get_args(hint)), hint)  # of what may be missing, or of a list
        if get_origin(hint) is Literal:
            return get_args(hint)
    return hint.__struct_fields__
