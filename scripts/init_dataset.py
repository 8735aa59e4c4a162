"""Makes a data set of your own radiographs: from their folder and what an annotation tool exported.

    python -m scripts.init_dataset NAME --images FOLDER --annotations EXPORT
    python -m scripts.init_dataset NAME --images FOLDER --annotations EXPORT --patient '^[^_]+' --mirror _R_
    python -m scripts.init_dataset NAME --images FOLDER     # what annotations may be, and the keys of a description
    python -m scripts.run_pipeline --dataset NAME --preset quick     # then

Run it again when more was annotated: images keep their split, and new ones get one (`--fractions 1 0 0`: they are for
training).

Reads   FOLDER: PNG, JPEG, TIFF, BMP of 8 to 16 bits, or DICOM (with or without a suffix), in folders or not
        EXPORT, a file, a folder, or a ZIP file as downloaded: CVAT for images 1.1, COCO (polygons, run lengths),
        labelme's JSON files, label maps with one value or color a label, or one binary mask per label and image, in
        folders of the labels' names or with the label in the file's name
Writes  <data_dir>/NAME/description.toml    what the data set is
        <data_dir>/NAME/images.csv          of each image: its file, split, patient, and whether it is mirrored
        <data_dir>/NAME/prepared/           links to the images (or PNG files of DICOM), and the annotations
        <data_dir>/NAME/overlays.png        some images with their masks: look at it
"""
import argparse
import re
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from scripts.measure_dataset import find_negatives, measure, measure_max_grey_value
from scripts.own_data.annotations import (
    Annotations,
    Export,
    Wishes,
    find_masks,
    naming_originals,
    open_exports,
    read_exports,
    unpack_embedded,
)
from scripts.own_data.description import HEAD, KEPT, TABLE, describe, explain_keys, write_toml
from scripts.own_data.images import PREPARED, Radiographs, describe_left_out, list_images, propose_input_size, take_in
from scripts.own_data.mask_files import keep_labels
from scripts.own_data.overlays import choose_pictured, draw_page
from scripts.own_data.splits import assign, read_splits
from utils.cli import run_stage, stage_parser, tell
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.description import DATASET_NAMES, MEASURED, OWN
from utils.datasets.image_files import Places
from utils.datasets.sources import SPLITS
from utils.errors import InputError
from utils.files import atomic_path, write_png
from utils.names import name_some
from utils.options import non_negative, positive_int
from utils.paths import DATA
from utils.tables import read_rows, write_rows

PAGE = "overlays.png"
COLUMNS = ("stem", "file", "split", "patient", "mirrored")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.init_dataset", __doc__)
    parser.add_argument("name", metavar="NAME", help="of the data set, for --dataset: its folder in <data_dir>")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="all radiographs")
    parser.add_argument("--annotations", type=Path, nargs="+", default=[], metavar="EXPORT",
                        help="what the annotation tool exported")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL",
                        help="only these labels, in this order; of label maps without a table the names of values")
    parser.add_argument("--values", nargs="+", default=[], metavar="LABEL=VALUE",
                        help="of label maps: the value or color of each label, as femur=1 or femur=255,0,0, or a file "
                             "(labelmap.txt, dataset.json, a CSV file of label and value); left out: such a file "
                             "beside the masks")
    parser.add_argument("--attribute", metavar="NAME",
                        help="of CVAT: the attribute that says what a shape shows; none: its label does")
    parser.add_argument("--without_shapes", choices=("unlabeled", "empty"), default="unlabeled",
                        help="what images in the export without a shape are: not annotated, or showing no label")
    parser.add_argument("--mirror", metavar="PATTERN",
                        help="mirror the images whose names this regular expression finds, with their masks, such as "
                             "right hands")
    parser.add_argument("--mirrored", metavar="PATTERN",
                        help="the images whose names this finds are mirrored already, what was drawn on them is not")
    parser.add_argument("--patient", metavar="PATTERN",
                        help="regular expression that finds the patient in the name of an image (its first group, if "
                             "it has one); left out: what DICOM says, else each image is of another patient")
    parser.add_argument("--splits", type=Path, metavar="FILE",
                        help="a CSV file of stem and split, or a folder with train.txt, val.txt, test.txt; left out: "
                             "those of before, CVAT's subsets or folders of such names, else by --fractions")
    parser.add_argument("--fractions", type=non_negative(float), nargs=3, default=(0.7, 0.15, 0.15), metavar="SHARE",
                        help="of the annotated images for training, validation, testing; 1 0 0 in a run after the "
                             "first one trains on all that was annotated since")
    parser.add_argument("--seed", type=int, default=42, help="of the split by fractions")
    parser.add_argument("--input_size", type=positive_int, nargs=2, metavar=("H", "W"),
                        help="of the network's input; left out: by the median aspect of the images")
    parser.add_argument("--sam_type", default="medsam_lite", help="the SAM that refines; the default needs no download")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    return parser


def main(args: argparse.Namespace) -> Path | None:
    """Returns the description's path, or None without annotations."""
    folder = args.data_dir / args.name
    for option in ("mirror", "mirrored", "patient"):
        check_pattern(option, getattr(args, option))
    if not sum(args.fractions):
        raise InputError("--fractions: are all 0; give the shares of training, validation and testing, such as 7 2 1")
    check_folder(args.name, folder, [args.images, *args.annotations])
    prepared = folder / PREPARED
    with tempfile.TemporaryDirectory() as unpacked, naming_originals(Path(unpacked), args.annotations):
        exports = open_exports(args.annotations, Path(unpacked) / "exports")
        (prepared / "img").mkdir(parents=True, exist_ok=True)
        images = take_in(find_images(args.images, exports, prepared / "embedded"), prepared / "img", args.mirror,
                         args.mirrored, args.patient)
        tell("images", [images.describe()])
        tell("left out", describe_left_out(images.left_out, "images"))
        if not exports:
            print(f"\nName what was annotated with --annotations (see --help), and {folder / OWN} is written.\n\n"
                  + explain_keys())
            return None
        wishes = Wishes(tuple(args.labels), args.attribute, args.without_shapes, tuple(args.values))
        new = Path(unpacked) / "new" / PREPARED
        annotations = read_exports(exports, images, wishes, new)
        tell("annotations", annotations.notes)
        tell("left out", annotations.left_out)
        split_of = split(annotations, images, folder, args.splits, args.fractions, args.seed)
        drop_untrained(annotations, split_of)
        for name in ("annotations", "masks"):  # now that nothing is wrong with the new ones
            shutil.rmtree(prepared / name, ignore_errors=True)
            if (new / name).exists():
                shutil.move(new / name, prepared / name)
    withheld = find_withheld(images, split_of)
    write_images(folder / TABLE, images, split_of, withheld)
    size = args.input_size or propose_input_size([image.size for image in images.images.values()])
    command = say_command(vars(args))
    write_description(folder, describe(annotations, images, size, args.sam_type, command, len(split_of), withheld))
    data = open_dataset(args.name, args.data_dir)
    write_png(folder / PAGE, draw_page(data, choose_pictured({stem: annotations.shown[stem] for stem in split_of}),
                                       split_of))
    print(f"\n{folder / OWN}\n{folder / PAGE}: look whether the masks lie where they should, then\n"
          f"python -m scripts.run_pipeline --dataset {shlex.quote(args.name)} --preset quick"
          + say_number(data))
    return folder / OWN


def say_number(data: AnnotatedImages) -> str:
    """The argument that leaves images for pseudo labels where all are annotated."""
    if data.description.unlabeled == "not_annotated":
        return ""
    return f" --num_train_samples {max(1, len(data.stems('train')) // 2)}"


def check_pattern(option: str, pattern: str | None) -> None:
    """Raises an InputError where a regular expression isn't one."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise InputError(f"--{option} {pattern!r}: is no regular expression ({error}); write special characters with a "
                         "backslash before them") from None


def check_folder(name: str, folder: Path, sources: Sequence[Path]) -> None:
    """Raises an InputError where a data set of that name can't be, or files of someone else would be lost."""
    if name in DATASET_NAMES or Path(name).name != name:
        raise InputError(f"{name!r}: can't be the name of your data set, as ours are {', '.join(DATASET_NAMES)}; "
                         "choose another one, without / in it")
    own = folder / OWN
    if own.is_file() and not own.read_text(encoding="utf-8-sig").startswith(HEAD):
        raise InputError(f"{own}: was not written by this command; take it away, or choose another name")
    inside = (folder / PREPARED).resolve()
    if odd := [path for path in sources if inside in [path.resolve(), *path.resolve().parents]]:
        raise InputError(f"{odd[0]}: lies in {inside}, which this command writes; name the original files")


def find_images(images: Path, exports: list[Export], place: Path) -> dict[str, Path]:
    """Name -> file: those in the folder; if it holds none, those inside labelme's files, which are unpacked to `place`.
    """
    try:
        return list_images(images, find_masks(exports, images))
    except InputError:
        if not (unpacked := unpack_embedded(exports, place)):
            raise
        return list_images(unpacked)


def split(annotations: Annotations, images: Radiographs, folder: Path, splits: Path | None, fractions: Sequence[float],
          seed: int) -> dict[str, str]:
    """Stem -> split of each annotated image, and what was done is printed."""
    stems, source = sorted(annotations.shown), "CVAT's subsets, or folders"
    given = {stem: annotations.subsets[stem] for stem in stems if stem in annotations.subsets}
    if (folder / TABLE).is_file():
        before = {row["stem"]: row["split"] for row in read_rows(folder / TABLE, COLUMNS) if row["split"] in SPLITS}
        given, source = {**given, **{stem: before[stem] for stem in stems if stem in before}}, "the splits of before"
    if splits is not None:
        places = Places(stems)
        found = {places.find(stem): chosen for stem, chosen in read_splits(splits).items()}
        given, source = {**given, **{stem: chosen for stem, chosen in found.items() if stem}}, str(splits)
    patients = {stem: images.images[stem].patient or stem for stem in stems}
    split_of = assign(patients, annotations.shown, given, fractions, seed)
    counts = Counter(split_of.values())
    tell("splits", [", ".join(f"{counts[name]} {name}" for name in SPLITS)
                    + f", of {len(set(patients.values()))} patients"
                    + (f"; {len(given)} by {source}" if given else "")
                    + (f"; {len(stems) - len(given)} by the seed {seed}" if len(given) < len(stems) else "")])
    if not any(image.patient for image in images.images.values()):
        print("splits: each image counts as one of another patient; --patient PATTERN finds them in the names")
    return split_of


def drop_untrained(annotations: Annotations, split_of: Mapping[str, str]) -> None:
    """Leaves out labels that no training image shows."""
    trained = set().union(*(annotations.shown[stem] for stem, chosen in split_of.items() if chosen == "train"))
    if untrained := [label for label in annotations.labels if label not in trained]:
        tell("left out", [f"labels that no training image shows: {', '.join(untrained)}"])
    annotations.labels[:] = [label for label in annotations.labels if label in trained]
    keep_labels(annotations.masks, annotations.labels)
    if not annotations.labels:
        raise InputError("no training image shows a label; annotate more images, or split them otherwise (--splits)")


def find_withheld(images: Radiographs, split_of: Mapping[str, str]) -> set[str]:
    """The images that nobody annotated of patients whom the network is validated or tested on: it must not be trained
    on them either."""
    patients = {images.images[stem].patient for stem, chosen in split_of.items() if chosen != "train"} - {""}
    withheld = {stem for stem, image in images.images.items() if stem not in split_of and image.patient in patients}
    if withheld:
        tell("left out", [f"{len(withheld)} images that aren't annotated, of patients for validation or testing "
                          f"({name_some(sorted(withheld))}): they get no pseudo labels"])
    return withheld


def write_images(path: Path, images: Radiographs, split_of: Mapping[str, str], withheld: Collection[str]) -> None:
    write_rows(path, [(*COLUMNS, KEPT), *(
        [stem, image.name, split_of.get(stem, ""), image.patient, int(image.is_mirrored), int(stem not in withheld)]
        for stem, image in images.images.items())])


def say_command(values: Mapping[str, Any]) -> str:
    """The command line of arguments that aren't the defaults."""
    words = ["python", "-m", "scripts.init_dataset", values["name"]]
    for action in get_args_parser()._actions:
        value = values.get(action.dest)
        if action.option_strings and value not in (action.default, None, []):
            given = [] if value is True else value if isinstance(value, list) else [value]
            words += [action.option_strings[-1 if value is False else 0], *map(str, given)]
    return shlex.join(words)


def write_description(folder: Path, table: dict[str, Any]) -> None:
    """Writes the description with what is measured of the training images."""
    save(folder / OWN, table)
    data = drop_vanishing(folder, table)
    for stems in SPLITS:
        data.stems(stems)
    description = data.description
    if max_grey_value := measure_max_grey_value(data):
        table = {"max_grey_value": max_grey_value, **table}
        description = replace(description, max_grey_value=max_grey_value)
    *measured, rows = measure(data, description)
    table = {**dict(zip(MEASURED, measured, strict=True)), **table}
    print("\n{:<28}{:>10}{:>18}{:>14}".format("label", "shapes", "training images", "% of pixels"))
    for row in rows:
        print("{:<28}{:>10}{:>18}{:>14}".format(*row))
    tell("look at", list(find_negatives(data, description)))
    order = ["labels", "input_size", *MEASURED]
    table = {**{key: table[key] for key in order}, **{key: table[key] for key in table if key not in order}}
    save(folder / OWN, table)


def drop_vanishing(folder: Path, table: dict[str, Any]) -> AnnotatedImages:
    """The described data set, after labels that no training image shows at the network's input size left it."""
    data = open_dataset(folder.name, folder.parent, measured=False)
    visible = np.any([data.mask(stem).any(axis=(1, 2)) for stem in data.stems("train")], axis=0)
    if visible.all():
        return data
    labels = table["labels"]
    lost = [label for label, is_visible in zip(labels, visible, strict=True) if not is_visible]
    tell("left out", [f"labels too small to be seen at the network's input size: {', '.join(lost)}; --input_size H W "
                      "says a larger one"])
    labels[:] = [label for label, is_visible in zip(labels, visible, strict=True) if is_visible]
    if not labels:
        raise InputError(f"no label is seen at the network's input size {table['input_size']}; --input_size H W")
    keep_labels(table["masks"], labels)
    save(folder / OWN, table)
    return open_dataset(folder.name, folder.parent, measured=False)


def save(path: Path, table: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(HEAD + write_toml(table), encoding="utf-8")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
