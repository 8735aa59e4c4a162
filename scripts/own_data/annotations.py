"""What people annotated, by whatever tool: found, matched with the images, brought into the folder of the data set."""
import shutil
import zipfile
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from lxml import etree

from scripts.own_data.foreign import describe_foreign
from scripts.own_data.images import PREPARED, Radiographs, common_folder, copy, list_images
from scripts.own_data.mask_files import choose_labels, guess_masks, read_mask_files
from scripts.own_data.mask_table import MaskTable
from scripts.own_data.splits import split_named
from utils.datasets.coco import CocoShape, is_coco, is_panoptic, parse_coco, read_json
from utils.datasets.cvat import CvatImage, parse_cvat, read_attributes
from utils.datasets.image_files import IN_FOLDERS, Places, list_names, make_stem
from utils.datasets.labelme import is_labelme, parse_labelme
from utils.errors import InputError
from utils.names import name_some, suggest

NO_AREA = ("points", "polyline", "skeleton", "cuboid")
TEXTS = (".xml", ".json", ".txt", ".csv")
OTHER_COCO = ("image_info_", "panoptic_", "stuff_", "person_keypoints_", "captions_", "labels_")  # beside instances_
FORMATS = "CVAT for images 1.1, COCO, labelme, label maps or one mask per label"


@dataclass
class Annotations:
    """What was annotated.

    Attributes:
        masks: the table [masks] of the description
        labels: in channel order
        shown: the labels that each annotated image shows, by stem
        sizes: (H, W) that the annotation gives each of these images
        subsets: the name of the part that the annotation puts an image into, where it says so
        notes: what was understood
        left_out: what wasn't used, and why
    """

    masks: dict[str, Any]
    labels: list[str]
    shown: dict[str, set[str]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    subsets: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wishes:
    """What the user says of the annotations: `labels` in channel order, the `attribute` of CVAT's shapes that names
    what they show ("none": their label does), whether images `without_shapes` are "unlabeled" or "empty", and the
    `values` of label maps."""

    labels: tuple[str, ...] = ()
    attribute: str | None = None
    without_shapes: str = "unlabeled"
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """Files of one kind in a folder: "cvat", "coco", "labelme" or "masks"; `others` say the same in other ways."""

    kind: str
    folder: Path
    names: list[str]
    others: tuple[str, ...] = ()


@contextmanager
def naming_originals(unpacked: Path, annotations: Sequence[Path]) -> Iterator[None]:
    """Has errors name what the user gave, instead of the files in `unpacked`."""
    try:
        yield
    except InputError as error:
        text, new = str(error), f"{unpacked}/new/{PREPARED}/annotations"
        for number, path in enumerate(annotations):
            original = path.parent if path.is_file() and not zipfile.is_zipfile(path) else path
            alone = [f"{new}/"] if len(annotations) == 1 else []
            for place in (f"{new}/{number}/", f"{unpacked}/exports/{number}/", *alone):
                text = text.replace(place, f"{original}/")
        raise InputError(text) from None


def open_exports(paths: Sequence[Path], unpacked: Path) -> list[Export]:
    """Recognizes exports, which may be files, folders or ZIP files; the latter are unpacked into a folder of that name.

    Raises:
        InputError: one isn't there or of no known kind, or they are of several kinds.
    """
    exports = [_recognize(path, unpacked / str(number)) for number, path in enumerate(paths)]
    if len({export.kind for export in exports}) > 1 or (len(exports) > 1 and exports[0].kind == "masks"):
        raise InputError(f"--annotations: {' and '.join(export.kind for export in exports)}; give annotations of one "
                         "kind, and one folder of masks")
    return exports


def _recognize(path: Path, unpacked: Path) -> Export:
    if not path.exists():
        raise InputError(f"--annotations {path}: no such file or folder")
    if path.is_dir():
        export = _recognize_folder(path, list_names(path))
    elif zipfile.is_zipfile(path):
        for only in (TEXTS, ()):
            _unpack(path, unpacked, only)
            if (export := _recognize_folder(unpacked, list_names(unpacked))).names:
                break
    else:
        export = _recognize_folder(path.parent, [path.name])
    if not export.names:
        foreign = describe_foreign(export.folder, list_names(path) if path.is_dir() else
                                   list_names(unpacked) if unpacked.is_dir() else [path.name])
        raise InputError(f"--annotations {path}: holds nothing that is read"
                         + (f" ({foreign})" if foreign else f"; export it as {FORMATS}"))
    return export


def _recognize_folder(folder: Path, names: list[str]) -> Export:
    found: dict[str, list[str]] = {}
    for name in names:
        if kind := _kind_of(folder / name, alone=len(names) == 1):
            found.setdefault(kind, []).append(name)
    drawn = [kind for kind in found if kind != "masks"]
    if len(drawn) > 1:
        raise InputError(f"--annotations {folder}: holds annotations of several kinds ({', '.join(sorted(drawn))}), "
                         f"such as {found[drawn[0]][0]} and {found[drawn[1]][0]}; name the right ones")
    kind = drawn[0] if drawn else "masks"
    names, others = found.get(kind, []), ()
    if kind == "coco" and any(Path(name).name.startswith("instances_") for name in names):
        others = tuple(name for name in names if Path(name).name.startswith(OTHER_COCO))
    return Export(kind, folder, [name for name in names if name not in others], others)


def _kind_of(path: Path, alone: bool) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".xml":
        try:
            root = next(etree.iterparse(str(path), events=("start",), resolve_entities=False, no_network=True))[1]
        except (etree.XMLSyntaxError, StopIteration):
            return "cvat" if alone else None  # its reader says what is wrong
        return "cvat" if root.tag == "annotations" else None
    if suffix == ".json":
        table = read_json(path)
        return "coco" if is_coco(table) and not is_panoptic(table) else "labelme" if is_labelme(table) else None
    return "masks" if suffix in (".png", ".tif", ".tiff", ".gif", ".bmp", ".jpg", ".jpeg", ".webp", ".jp2") else None


def _unpack(path: Path, folder: Path, only: Sequence[str]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not only or name.lower().endswith(tuple(only))]
            archive.extractall(folder, members)
    except Exception as error:  # whatever the damage leads to
        raise InputError(f"{path}: not a readable ZIP file ({error}); export it again") from None


def read_exports(exports: Sequence[Export], images: Radiographs, wishes: Wishes, place: Path) -> Annotations:
    """Reads exports of one kind, and brings what the data set needs of them into the folder `place`/annotations, or
    `place`/masks.

    Raises:
        InputError: a file is wrong, an image is annotated twice, or nothing fits the images.
    """
    kind = exports[0].kind
    if kind == "masks":
        table = MaskTable.read(exports[0].folder, wishes.values)
        found = read_mask_files(exports[0].folder, exports[0].names, images, wishes.labels, table, place / "masks")
        annotations = Annotations(**found)
    else:
        paths = _copy(exports, place / "annotations")
        if kind == "cvat" and images.in_folders:
            for path in paths:
                _part_subsets(path)
        annotations = _read_shapes(kind, paths, images, wishes, place)
        if others := [name for export in exports for name in export.others]:
            annotations.left_out.append(f"{len(others)} other COCO files beside the instances ({name_some(others)})")
    for stem in annotations.shown:
        for part in (annotations.subsets.get(stem, ""), images.images[stem].subset):
            if split := split_named(part):
                annotations.subsets[stem] = split
                break
        else:
            annotations.subsets.pop(stem, None)
    _leave_out_other_sizes(annotations, images)
    return annotations


def _copy(exports: Sequence[Export], place: Path) -> list[Path]:
    """The files of exports in their new place, in the folders they had."""
    paths = []
    for number, export in enumerate(exports):
        shared = common_folder(export.names)
        for name in export.names:
            inner = name[len(shared):]
            paths.append(place / (inner if len(exports) == 1 else f"{number}/{inner}"))
            copy(export.folder / name, paths[-1])
    return paths


def _part_subsets(path: Path) -> None:
    """Gives images of one name, but of several subsets of a CVAT project, the folder of their subset, in which CVAT
    exports them."""
    with suppress(etree.XMLSyntaxError):  # its reader says what is wrong
        tree = etree.parse(str(path), etree.XMLParser(resolve_entities=False, no_network=True))
        elements = tree.getroot().findall("image")
        names = Counter(element.get("name") for element in elements)
        twins = [element for element in elements if names[element.get("name")] > 1 and element.get("subset")]
        for element in twins:
            element.set("name", f"{element.get('subset')}/{element.get('name')}")
        if twins:
            tree.write(str(path), encoding="utf-8", xml_declaration=True)


def find_masks(exports: Sequence[Export], images: Path) -> list[Path]:
    """The masks, or folders of masks, that lie in the folder of the images."""
    folders = [export.folder.resolve() for export in exports if export.kind == "masks"]
    if images.resolve() in folders:
        return guess_masks(list_images(images))
    return [folder for folder in folders if images.resolve() in folder.parents]


def unpack_embedded(exports: Sequence[Export], place: Path) -> Path | None:
    """Writes the images that labelme's files hold (`imageData`) into the folder `place`, and returns it; None if there
    are none."""
    shutil.rmtree(place, ignore_errors=True)  # of a run before
    for path in [export.folder / name for export in exports if export.kind == "labelme" for name in export.names]:
        table = read_json(path)
        if data := table.get("imageData"):
            place.mkdir(parents=True, exist_ok=True)
            try:
                (place / PureWindowsPath(table["imagePath"]).name).write_bytes(b64decode(data))
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}: its imageData isn't readable ({error}); save it again in labelme") from None
    return place if place.is_dir() else None


def _leave_out_other_sizes(annotations: Annotations, images: Radiographs) -> None:
    """Images whose annotation is of another size than they are count as not annotated."""
    wrong = [stem for stem, drawn in annotations.sizes.items() if not all(
        0 <= of_drawing - shown <= 1 for of_drawing, shown in zip(drawn, images.images[stem].size, strict=True))]
    if not wrong:
        return
    (height, width), (drawn_height, drawn_width) = images.images[wrong[0]].size, annotations.sizes[wrong[0]]
    annotations.left_out.append(
        f"{len(wrong)} annotated images that are of another size than their annotation ({name_some(wrong)}; the first "
        f"is {width} x {height} pixels, annotated as {drawn_width} x {drawn_height}): they count as not annotated")
    for stem in wrong:
        del annotations.shown[stem]


def _read_shapes(kind: str, paths: Sequence[Path], images: Radiographs, wishes: Wishes, place: Path) -> Annotations:
    folder, notes = place.parent, []
    names = [path.relative_to(folder).as_posix() for path in paths]
    if kind == "cvat":
        attribute, values = _find_attribute(paths, wishes.attribute, notes)
        read = [(path, image) for path in paths
                for image in parse_cvat(path, attribute, values, NO_AREA, images.in_folders)]
        masks = {"kind": kind, "files": [{"file": name} for name in names]}
        masks |= {"attribute": attribute} if attribute else {}
    elif kind == "coco":
        read = [(path, image) for path in paths for image in parse_coco(path, None, images.in_folders)]
        masks = {"kind": kind, "files": names}
    else:
        inside = place / "annotations"
        read = [(path, parse_labelme(path, path.relative_to(inside).as_posix())) for path in paths]
        masks = {"kind": kind, "folder": inside.relative_to(folder).as_posix()}
    masks |= {"without_shapes": wishes.without_shapes} if wishes.without_shapes == "empty" else {}
    counts = Counter(shape.anatomy for _, image in read for shape in image.shapes)
    skipped = sum((image.skipped for _, image in read), Counter())
    annotations = Annotations(masks, choose_labels(list(counts), wishes.labels), notes=notes)
    if kind == "cvat" and skipped:
        masks["skip_shapes"] = sorted(skipped)
    for shape, count in sorted(skipped.items()):
        annotations.left_out.append(f"{count} shapes of the kind {shape}, which have no area")
    if unused := {label: count for label, count in counts.items() if label not in annotations.labels}:
        annotations.left_out.append(f"{sum(unused.values())} shapes of labels that --labels doesn't name: "
                                    + name_some([f"{count} {label}" for label, count in unused.items()], 10))
    notes.insert(0, f"{kind} annotations of {len(read)} images; shapes: "
                 + ", ".join(f"{counts[label]} {label}" for label in annotations.labels))
    boxes = Counter(shape.anatomy for _, image in read for shape in image.shapes
                    if isinstance(shape, CocoShape) and shape.of_box and shape.anatomy in annotations.labels)
    if boxes:
        notes.append(f"{boxes.total()} annotations have nothing but a box, so that all of it is the mask: "
                     + ", ".join(f"{count} {label}" for label, count in boxes.items())
                     + " (--labels leaves labels out)")
    _match(annotations, read, images, wishes.without_shapes)
    return annotations


def _match(annotations: Annotations, read: Sequence[tuple[Path, CvatImage]], images: Radiographs, without_shapes: str
           ) -> None:
    """Finds the image of each annotation."""
    places, absent, empty, wanted = Places(images.images), [], [], set(annotations.labels)
    called: dict[str, str] = {}
    for path, image in read:
        stem = places.find(image.stem)
        labels = {shape.anatomy for shape in image.shapes} & wanted
        if stem is None:
            absent.append(image.name)
        elif not _may_be_one(called.setdefault(stem, image.name), image.name):
            raise InputError(f"{path}: {image.name} and {called[stem]} may both be the image "
                             f"{images.images[stem].name}; {IN_FOLDERS}, or take one out of the annotations")
        elif not labels and without_shapes == "unlabeled":
            empty.append(image.name)
        elif stem in annotations.shown:
            raise InputError(f"{path}: image {image.name} is annotated twice; keep one")
        else:
            annotations.shown[stem], annotations.sizes[stem] = labels, (image.height, image.width)
            annotations.subsets[stem] = image.subset or f"{path.parent.name}/{path.stem}"
    if absent:
        annotations.left_out.append(f"{len(absent)} annotated images that --images doesn't hold ({name_some(absent)})")
    if empty:
        annotations.left_out.append(f"{len(empty)} images in the export without a shape ({name_some(empty)}): they "
                                    "count as not annotated; --without_shapes empty makes them images that show none "
                                    "of the labels")


def _may_be_one(name: str, other: str) -> bool:
    """Whether two names differ at most in how many of their folders they tell."""
    short, long = sorted((make_stem(each, True) for each in (name, other)), key=len)
    return long.endswith(short)


def _find_attribute(paths: Sequence[Path], wish: str | None, notes: list[str]) -> tuple[str | None, set[str] | None]:
    """The attribute of CVAT's shapes that says what they show, with its values, or None: their label does.

    Unless the user says, it is the only attribute of the only label, if it has several values that are words.
    """
    if wish == "none":
        return None, None
    shapes = [shape for path in paths for shape in read_attributes(path)]
    if wish is not None:
        values = {attributes[wish] for _, attributes in shapes if attributes.get(wish)}
        if not values:
            known = sorted(set().union(*(attributes for _, attributes in shapes)))
            raise InputError(f"--attribute {wish}: no shape has it{suggest(wish, known)}; there are: "
                             f"{', '.join(known) or 'none'}")
        return wish, values
    names = set().union(*(attributes for _, attributes in shapes))
    if len({label for label, _ in shapes}) != 1 or len(names) != 1:
        return None, None
    name = names.pop()
    values = {attributes.get(name, "") for _, attributes in shapes}
    if len(values) < 2 or "" in values or any(value.casefold() in ("true", "false") or _is_number(value)
                                              for value in values):
        return None, None
    notes.append(f"what a shape shows is said by its attribute {name!r}, as all have the label {shapes[0][0]!r} "
                 "(--attribute none: the label says it)")
    return name, values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
