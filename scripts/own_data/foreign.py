"""Exports that are not read, told by their files, so that it can be said what to export instead."""
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lxml import etree

from utils.datasets.coco import is_panoptic, read_json
from utils.errors import InputError
from utils.names import VOLUME_SUFFIXES, name_some

MOST_OPENED = 20  # files of a suffix
BOXES = re.compile(r"\d+( \d*\.?\d+(e-?\d+)?){4,}")  # a line of YOLO's


def describe_foreign(folder: Path, names: Sequence[str]) -> str:
    """What files in a folder are, where it isn't read, and what to export instead; "" if nothing is known of them."""
    found: dict[str, list[str]] = {}
    for suffix in {Path(name).suffix.lower() for name in names}:
        for name in islice((name for name in names if Path(name).suffix.lower() == suffix), MOST_OPENED):
            for what in _recognize(folder / name, suffix):
                found.setdefault(what, []).append(name)
    return "; ".join(f"{what}, such as {name_some(sorted(of), 1)}" for what, of in found.items())


def _recognize(path: Path, suffix: str) -> Iterator[str]:
    with suppress(InputError, OSError, UnicodeDecodeError, etree.XMLSyntaxError, StopIteration):
        if suffix == ".json":
            yield from _recognize_json(read_json(path))
        elif suffix == ".xml":
            root = next(etree.iterparse(str(path), events=("start",), resolve_entities=False, no_network=True))[1]
            if root.tag == "annotation":
                yield "Pascal VOC's or LabelMe's XML: export COCO or masks"
        elif suffix in (".txt", ".yaml", ".data"):
            text = path.read_text(encoding="utf-8-sig")
            if ("names" in text if suffix != ".txt" else BOXES.fullmatch(text.partition("\n")[0].strip())):
                yield "YOLO's files: export COCO"
        elif suffix in VOLUME_SUFFIXES:
            yield "volumes or arrays: save label maps of two dimensions as PNG"


def _recognize_json(table: Any) -> Iterator[str]:
    if isinstance(table, list):
        if table and isinstance(table[0], dict) and "data" in table[0]:
            yield "Label Studio's JSON: export COCO (of polygons), or for brushes save a label map of each image"
        elif table and isinstance(table[0], dict) and {"image", "annotations"} <= set(table[0]):
            yield "CreateML's JSON, which has boxes only: annotate with polygons or masks"
        return
    if not isinstance(table, dict):
        return
    first = next(iter(table.values()), None)
    if is_panoptic(table):
        yield "COCO panoptic: export COCO instances"
    elif "items" in table and "categories" in table:
        yield "Datumaro's JSON: export COCO instances"
    elif "_via_img_metadata" in table or (isinstance(first, dict) and "regions" in first):
        yield "VIA's JSON: export COCO"
    elif isinstance(table.get("image"), dict) and "annotations" in table:
        yield "Segment Anything's JSON, which names no labels: export COCO"
    elif "objects" in table:
        yield "Supervisely's JSON: export COCO"
