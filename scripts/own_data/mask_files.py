"""Masks in image files, as tools and people name and store them: found for each image, and read."""
import filecmp
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.own_data.foreign import describe_foreign
from scripts.own_data.images import Radiographs, common_folder, copy
from scripts.own_data.mask_table import IGNORED, MaskTable
from scripts.own_data.splits import split_named
from utils.datasets.image_files import FOLDER_MARK, list_names
from utils.datasets.label_maps import (
    BACKGROUND,
    LOSSLESS,
    MOST_OF_AN_IMAGE,
    WHITE,
    Pixels,
    find_values,
    read_binary,
    read_label_map,
)
from utils.errors import InputError
from utils.files import read_grey
from utils.names import name_some, plain, suggest

PARTS = re.compile(r"([\W_]+)")  # what parts the words of a name
MOST_VALUES = 64
NO_LABEL = {"mask", "masks", "label", "labels", "labelstr", "segmentation", "segmentations", "seg", "annotation",
            "annotations", "gt", "ground", "truth", "images", "image", "png", "export", "data"}
# how words begin that tell several forms of the same masks apart (Cityscapes, KITTI, Pascal VOC)
OF_LABELS, OF_OBJECTS, IN_COLOR = (("labelids", "semantic", "segmentationclass"), ("instance", "segmentationobject"),
                                   ("color", "rgb", "segmentationclassvis"))
Pattern = tuple[str, str]  # what stands before and after the name of the image


def choose_labels(found: Sequence[str], wished: Sequence[str]) -> list[str]:
    """The labels in channel order: those that the user names, or all in sorted order.

    Raises:
        InputError: there are none, or one that isn't there is named.
    """
    if not found:
        raise InputError("--annotations: no shape with an area was found; annotate with polygons, masks, boxes or "
                         "ellipses")
    known = {plain(label): label for label in found}
    for label in wished:
        if plain(label) not in known:
            raise InputError(f"--labels: nobody annotated {label!r}{suggest(label, known)}; there are: "
                             f"{', '.join(sorted(known))}")
    return [known[plain(label)] for label in dict.fromkeys(wished)] or sorted(known.values())


def read_mask_files(folder: Path, names: Sequence[str], images: Radiographs, wished: Sequence[str], table: MaskTable,
                    place: Path) -> dict[str, Any]:
    """Finds the image of each mask, and copies the masks into the folder `place`.

    Returns:
        the fields of `scripts.own_data.annotations.Annotations`
    Raises:
        InputError: a mask isn't readable, or what its values mean isn't clear.
    """
    taken = {image.path.resolve() for image in images.images.values()}
    names = [name for name in names if (folder / name).resolve() not in taken]
    lossless = [name for name in names if Path(name).suffix.lower() in (*LOSSLESS, ".tiff")]
    groups, strangers = match_masks(lossless, images)
    groups, copies = _drop_copies(folder, groups, images)
    groups, twins = _choose_form(_join_splits(groups), bool(table.colors))
    left_out = [f"{len(left)} files {why} ({name_some(left)})" for why, left in (
        ("that are copies of images", copies),
        ("that show the same masks in another form", twins),
        ("that fit no image", strangers),
        ("in lossy formats, which keep masks only roughly", sorted(set(names) - set(lossless)))) if left]
    foreign = describe_foreign(folder, list_names(folder))
    if not groups:
        raise InputError(f"--annotations {folder}: no mask fits an image" + "".join(f"; {text}" for text in left_out)
                         + (f"; it holds {foreign}" if foreign else "; a mask's name has the image's name in it, as "
                            "17_mask.png or femur/17.png, and is PNG, TIFF, GIF or BMP"))
    if foreign:
        left_out.append(f"{foreign} (the masks are read)")
    read = _read_label_maps if len(groups) == 1 else _read_label_files
    try:
        found = read(folder, groups, wished, table, place)
    except InputError as error:
        raise InputError(f"{error}; beside the masks lie {foreign}" if foreign else str(error)) from None
    shared = common_folder(names)
    parts = {stem: name[len(shared):].rpartition("/")[0].removesuffix("annot")
             for of in groups.values() for stem, name in of.items()}
    if len({split_named(part) for part in parts.values()}) > 1:
        found["subsets"] = parts
    found["left_out"] = [*left_out, *found.get("left_out", ())]
    return found


def guess_masks(paths: Mapping[str, Path]) -> list[Path]:
    """The masks among images of one folder (name -> file): 17_mask.png beside 17.png, or 17.png beside 17.jpg."""
    starts = {name[:-len(path.suffix) or None] for name, path in paths.items()}
    others = {name[:-len(path.suffix) or None] for name, path in paths.items() if path.suffix.lower() not in LOSSLESS}
    return [path for name, path in paths.items() if path.suffix.lower() in (*LOSSLESS, ".tiff")
            and ((start := name[:-len(path.suffix)]) in others
                 or any(start[:end] in starts for match in PARTS.finditer(start)
                        for end in range(match.start(), match.end() + 1) if end < len(start)))]


def match_masks(names: Sequence[str], images: Radiographs) -> tuple[dict[Pattern, dict[str, str]], list[str]]:
    """The masks by what their names have beside the name of their image: pattern -> stem -> name; and those without an
    image."""
    by_name: dict[str, str] = {}
    ends = Counter(stem.split(FOLDER_MARK)[-1] for stem in images.images)
    for stem, image in images.images.items():
        by_name |= {stem: stem, image.name[:-len(Path(image.name).suffix) or None]: stem}
        end = stem.split(FOLDER_MARK)[-1]
        by_name |= {end: stem} if ends[end] == 1 else {}
    shared = common_folder(names)
    for exact in (by_name, _shorten(images)):
        alike: dict[str, set[str]] = {}
        for name, stem in exact.items():
            alike.setdefault(name.casefold(), set()).add(stem)
        known = {name: next(iter(stems)) for name, stems in alike.items() if len(stems) == 1} | exact
        groups, strangers, candidates = {}, [], {}
        for name in names:
            inner = name[len(shared):-len(Path(name).suffix)]
            found = [(span, known.get(inner[slice(*span)]) or known.get(inner[slice(*span)].casefold()))
                     for span in _spans(inner)]
            candidates[name] = [((inner[:start], inner[end:]), stem) for (start, end), stem in found if stem]
        counts = Counter(pattern for found in candidates.values() for pattern, _ in found)
        for name, found in candidates.items():
            if not found:
                strangers.append(name)
                continue
            pattern, stem = max(found, key=lambda pair: counts[pair[0]])  # 1_10 may be of image 1 or 10
            if stem in groups.setdefault(pattern, {}):
                raise InputError(f"{name}: is a mask of the same image as {groups[pattern][stem]}; keep one")
            groups[pattern][stem] = name
        if groups:
            return groups, strangers
    return {}, list(names)


def _drop_copies(folder: Path, groups: dict[Pattern, dict[str, str]], images: Radiographs
                 ) -> tuple[dict[Pattern, dict[str, str]], list[str]]:
    """Without the files that are the images themselves, which many tools export beside masks; and their names."""
    copies = {name for found in groups.values() for stem, name in
              tqdm(found.items(), desc="compare with images", unit="mask", leave=False)
              if _shows_the_same(folder / name, images.images[stem].path)}
    kept = {pattern: {stem: name for stem, name in found.items() if name not in copies}
            for pattern, found in groups.items()}
    return {pattern: found for pattern, found in kept.items() if found}, sorted(copies)


def _shows_the_same(path: Path, image: Path) -> bool:
    """Whether a file has the pixels of an image, which has more values than a mask."""
    if filecmp.cmp(path, image, shallow=False):
        return True
    with suppress(InputError):
        grey = read_grey(path)
        return len(find_values(grey)) > MOST_VALUES and np.array_equal(grey, read_grey(image))
    return False


def _choose_form(groups: dict[Pattern, dict[str, str]], has_colors: bool
                 ) -> tuple[dict[Pattern, dict[str, str]], list[str]]:
    """One of several forms of the same masks: by labels, not objects; in color where there is a table of colors."""
    def find(patterns: Iterable[Pattern], begins: tuple[str, ...]) -> list[Pattern]:
        return [pattern for pattern in patterns
                if any(word.startswith(begins) for word in PARTS.split("/".join(pattern).lower()))]

    if len(groups) < 2 or not find(groups, OF_LABELS):
        return groups, []
    objects = find(groups, OF_OBJECTS)
    kept = [pattern for pattern in groups if pattern not in objects]
    if colored := find(kept, IN_COLOR):
        kept = colored if has_colors else [pattern for pattern in kept if pattern not in colored]
    return ({pattern: groups[pattern] for pattern in kept},
            [name for pattern, found in groups.items() if pattern not in kept for name in found.values()])


def _join_splits(groups: dict[Pattern, dict[str, str]]) -> dict[Pattern, dict[str, str]]:
    """Patterns that differ in the folder of a split only are one; CamVid's folders are called trainannot."""
    joined: dict[Pattern, dict[str, str]] = {}
    for (before, after), found in groups.items():
        folders = [part for part in before.split("/")[:-1] if split_named(part.removesuffix("annot")) is None]
        others = joined.setdefault(("/".join([*folders, before.split("/")[-1]]), after), {})
        if twins := sorted(set(others) & set(found)):
            raise InputError(f"{found[twins[0]]}: is a mask of the same image as {others[twins[0]]}; keep one")
        others.update(found)
    return joined


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where whole words of a text begin and end, the longest first."""
    borders = {0, len(text)}
    for match in PARTS.finditer(text):
        borders |= set(range(match.start(), match.end() + 1))
    return iter(sorted(combinations(sorted(borders), 2), key=lambda span: span[0] - span[1]))


def _shorten(images: Radiographs) -> dict[str, str]:
    """The names of images without the words that all begin or end with: 17 of 17_0000, or of img_17."""
    stems = list(images.images)
    words = [PARTS.split(stem) for stem in stems]
    start = end = 0
    while len(stems) > 1 and all(len(each) > start + 1 for each in words) and len({each[start] for each in words}) == 1:
        start += 1
    while len(stems) > 1 and all(len(each) > start + end + 1 for each in words) and (
            len({each[-1 - end] for each in words}) == 1):
        end += 1
    start, end = start // 2 * 2, end // 2 * 2  # with what parts the words
    return {"".join(each[start:len(each) - end]): stem for each, stem in zip(words, stems, strict=True)}


def _read_label_maps(folder: Path, groups: dict[Pattern, dict[str, str]], wished: Sequence[str], table: MaskTable,
                     place: Path) -> dict[str, Any]:
    (pattern, paths), = groups.items()
    found_names = list(paths.values())
    paths = {stem: folder / name for stem, name in paths.items()}
    masks: dict[str, Any] = {"kind": "label_maps", "folder": place.relative_to(place.parents[1]).as_posix()}
    notes, left_out = [], []
    if table.colors:
        names = [name for name, color in table.colors.items()
                 if name.casefold() not in (BACKGROUND, *IGNORED) and any(color)]
        masks["colors"] = {name: list(color) for name, color in table.colors.items()}
        notes.append(f"label maps in color; {len(names)} colors by {table.source}")
        values = {}
    else:
        counts = _count_values(paths)
        folders = [folder.name, *common_folder(found_names).split("/")]
        values, ignore = _name_values(counts, table, wished, pattern, folders, notes)
        names = list(values)
        masks |= {"values": values} | ({"ignore": ignore} if ignore else {})
        if ignore:
            left_out.append(f"the values {', '.join(map(str, ignore))}, which no label has: they count as background")
    shown, sizes, large = {}, {}, set()
    for stem, path in tqdm(paths.items(), desc="masks", unit="mask", leave=False):
        drawn = read_label_map(path, names, values, masks.get("ignore", ()), table.colors or None)
        shown[stem] = {name for name, mask in zip(names, drawn, strict=True) if mask.any()}
        sizes[stem] = drawn.shape[1:]
        large |= {name for name, mask in zip(names, drawn, strict=True) if mask.mean() > MOST_OF_AN_IMAGE}
        copy(path, place / f"{stem}{path.suffix.lower()}")
    return _finish(masks, shown, sizes, large, wished, notes, left_out, keep_order=True)


def _count_values(paths: Mapping[str, Path]) -> Counter[int]:
    """In how many masks each value but 0 is. Raises InputError where masks are in color."""
    counts: Counter[int] = Counter()
    for path in tqdm(paths.values(), desc="values of masks", unit="mask", leave=False):
        pixels = Pixels(path)
        if pixels.stored is None:
            colors = np.unique(pixels.shown.reshape(-1, 3), axis=0)
            some = name_some([",".join(map(str, color)) for color in colors if color.any()], 8)
            raise InputError(f"{path}: is in color ({some}); say which label each has: --values LABEL=R,G,B ..., or "
                             "--values labelmap.txt as CVAT exports it")
        counts.update(value for value in find_values(
            pixels.shown[..., 0] if pixels.has_grey_palette else pixels.stored) if value)
    return counts


def _name_one(pattern: Pattern, folders: Sequence[str]) -> str:
    """A label by what stands beside the images' names, or else the nearest folder, where these say anything."""
    beside = [_strip(part) for part in "/".join(pattern).split("/")]
    if any(beside):
        return "_".join(filter(None, beside))
    return next(filter(None, map(_strip, reversed(folders))), "object")


def _strip(text: str) -> str:
    """A text without words at its ends that name no label."""
    words = PARTS.split(text)
    while words and (not words[0].isalnum() or words[0].casefold() in NO_LABEL):
        del words[0]
    while words and (not words[-1].isalnum() or words[-1].casefold() in NO_LABEL):
        del words[-1]
    return "".join(words)


def _name_values(counts: Counter[int], table: MaskTable, wished: Sequence[str], pattern: Pattern,
                 folders: Sequence[str], notes: list[str]) -> tuple[dict[str, int], list[int]]:
    """What each value means, and those that mean nothing. `folders` are those that all masks lie in."""
    found = sorted(counts)
    said = ", ".join(f"{value} in {counts[value]}" for value in found[:MOST_VALUES])
    if not found:
        raise InputError("--annotations: all masks are black; name the folder with the right ones")
    if table.values and len(found) <= MOST_VALUES + len(table.values):
        notes.append(f"label maps with the values {said} images; their labels by {table.source}")
        return table.values, [value for value in found if value not in table.values.values()]
    if len(found) > MOST_VALUES:
        raise InputError(f"--annotations: masks have {len(found)} values, as if they had smooth edges; save them with "
                         "one value a label, or say which values count: --values LABEL=VALUE ...")
    ignore = [WHITE] if len(found) > 1 and found[-1] == WHITE and found[-2] < WHITE - MOST_VALUES else []
    rest = [value for value in found if value not in ignore]
    if len(rest) == 1:
        names = list(wished) if len(wished) == 1 else [_name_one(pattern, folders)]
    elif len(wished) == len(rest):
        names = list(wished)
    elif wished and rest[-1] <= len(wished):
        names = [wished[value - 1] for value in rest]
    elif wished:
        raise InputError(f"--labels names {len(wished)} labels, but masks have the values {said} images; say which "
                         "label each value has: --values LABEL=VALUE ...")
    else:
        names = [f"label_{value}" for value in rest]
    values = dict(zip(names, rest, strict=True))
    notes.append(f"label maps with the values {said} images; taken for "
                 + ", ".join(f"{name} = {value}" for name, value in values.items())
                 + ("" if wished else " (--labels or --values says more)"))
    return values, ignore


def _read_label_files(folder: Path, groups: dict[Pattern, dict[str, str]], wished: Sequence[str], table: MaskTable,
                      place: Path) -> dict[str, Any]:
    names = _name_patterns(list(groups))
    labels = choose_labels(list(names.values()), wished)
    shown: dict[str, set[str]] = {}
    sizes, large, files = {}, set(), {}
    for pattern, paths in groups.items():
        if (label := names[pattern]) not in labels:
            continue
        inner = str(len(files)) + re.sub(r"[^\w-]+", "_", f"_{label}")  # two labels might be alike without signs
        files[label] = f"{place.relative_to(place.parents[1]).as_posix()}/{inner}/{{stem}}.*"
        for stem, name in tqdm(paths.items(), desc=label, unit="mask", leave=False):
            mask = read_binary(folder / name)
            shown.setdefault(stem, set()).update([label] if mask.any() else [])
            if sizes.setdefault(stem, mask.shape) != mask.shape:
                raise InputError(f"{folder / name}: is {mask.shape[1]} x {mask.shape[0]} pixels, another mask of this "
                                 f"image {sizes[stem][1]} x {sizes[stem][0]}; use masks of one size")
            large |= {label} if mask.mean() > MOST_OF_AN_IMAGE else set()
            copy(folder / name, place / inner / f"{stem}{Path(name).suffix.lower()}")
    masks: dict[str, Any] = {"kind": "label_files", "files": {label: files[label] for label in labels}}
    notes, left_out = ["one mask per label: " + ", ".join(
        f"{len(paths)} {names[pattern]}" for pattern, paths in groups.items() if names[pattern] in labels)], []
    if any(len(groups[pattern]) < len(shown) for pattern, name in names.items() if name in labels):
        masks["missing_files"] = "empty"
        notes.append("an image without a file of a label doesn't show it")
    if len(labels) < len(groups):
        others = [f"{len(groups[pattern])} {name}" for pattern, name in names.items() if name not in labels]
        left_out.append(f"masks of labels that --labels doesn't name: {name_some(others, 10)}")
    return _finish(masks, shown, sizes, large, labels, notes, left_out)


def _name_patterns(patterns: Sequence[Pattern]) -> dict[Pattern, str]:
    """The labels: what stands beside the names of images, without words such as mask."""
    names = [_name_one(pattern, ()) for pattern in patterns]
    if len(set(names)) < len(names):
        names = ["_".join(filter(None, PARTS.split("".join(pattern)))) or "object" for pattern in patterns]
    return dict(zip(patterns, names, strict=True))


def _finish(masks: dict[str, Any], shown: dict[str, set[str]], sizes: dict[str, tuple[int, int]], large: set[str],
            wished: Sequence[str], notes: list[str], left_out: list[str], keep_order: bool = False) -> dict[str, Any]:
    """The fields of what was read. A label that no image shows is left out."""
    found = [name for name in masks.get("values") or masks.get("colors") or masks["files"]
             if any(name in labels for labels in shown.values())]
    labels = choose_labels(found, wished) if wished or not keep_order else found
    keep_labels(masks, labels)
    if large & set(labels):
        masks["large_labels"] = sorted(large & set(labels))
        notes.append(f"{', '.join(masks['large_labels'])} covers more than half of some image: look whether background "
                     "and label are exchanged")
    return {"masks": masks, "labels": labels, "shown": {stem: names & set(labels) for stem, names in shown.items()},
            "sizes": sizes, "notes": notes, "left_out": left_out}


def keep_labels(masks: dict[str, Any], labels: Sequence[str]) -> None:
    """Takes other labels out of a table [masks]; their values belong to no label then."""
    if "values" in masks:
        others = [value for name, value in masks["values"].items() if name not in labels]
        masks["values"] = {name: masks["values"][name] for name in labels}
        masks |= {"ignore": sorted({*masks.get("ignore", ()), *others})} if others else {}
    elif masks["kind"] == "label_files":
        masks["files"] = {name: masks["files"][name] for name in labels}
