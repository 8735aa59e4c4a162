"""Masks that several processes make, each its shard of the images, until they are one file.

    with exclusive(shard.to_lock(path)):        # in each process
        writer = MaskWriter(path, labels, attributes, shard)
        ...
        note_end(writer, stems)
    merge_masks(path)                           # once, when all have ended

What a shard leaves when it has ended is `<parts>/<shard>/ended.json`.
"""
import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from utils.errors import InputError
from utils.locks import exclusive
from utils.mask_store import MaskWriter, list_parts
from utils.provenance import describe_run
from utils.records import read_record, write_record

END = "ended.json"


class _End(msgspec.Struct):
    """Of which images, of all shards together, a shard has made its share, with which attributes, by which run."""
    number: int
    count: int
    images: str
    attributes: dict[str, str]
    run: dict[str, Any]


def note_end(writer: MaskWriter, stems: Sequence[str]) -> None:
    """That the writer's shard of these images is complete."""
    images = hashlib.sha256("\n".join(stems).encode()).hexdigest()
    end = _End(writer.shard.number, writer.shard.count, images, writer.attributes, describe_run())
    write_record(writer.own_parts / END, end)


def note_begin(writer: MaskWriter) -> None:
    """That it isn't."""
    (writer.own_parts / END).unlink(missing_ok=True)


def merge_masks(path: Path) -> None:
    """Makes one file of what the shards made; what they leave is removed. Without any the file stays as it is.

    Raises:
        InputError: a shard hasn't ended; they are of other settings or images; or there are neither shards nor file.
    """
    with exclusive(path):
        folders = sorted(path.parent.glob(f"{glob.escape(path.name)}.*.part"))
        if not folders and not path.is_file():
            raise InputError(f"{path}: there are no parts of it; name the file that the stage wrote about, and run the "
                             "stage with --shard first")
        if len(folders) > 1:
            raise InputError(f"{path}: its parts were made with other settings ({_find_difference(folders)}); remove "
                             f"the folder that isn't meant, one of {', '.join(folder.name for folder in folders)}")
        for folder in folders:
            ends = _find_complete(folder)
            if path.is_file() and not list_parts(folder):
                shutil.rmtree(folder)
                continue
            attributes = dict(ends[0].attributes)
            labels = list(json.loads(attributes.pop("labels")))
            MaskWriter(path, labels, attributes).unite([end.run for end in ends])


def _read_ends(folder: Path) -> list[_End]:
    return [read_record(file, _End) for file in folder.glob(f"*/{END}")]


def _find_complete(folder: Path) -> list[_End]:
    """What all shards of one number of them left, in their order."""
    ends = sorted(_read_ends(folder), key=lambda end: (end.count, end.number))
    counts = sorted({end.count for end in ends} | {int(each.name.partition("of")[2]) for each in folder.glob("*of*")})
    absent = {}
    for count in counts:
        complete = [end for end in ends if end.count == count]
        absent[count] = sorted(set(range(1, count + 1)) - {end.number for end in complete})
        if absent[count]:
            continue
        if odd := [end for end in complete if end.images != complete[0].images]:
            raise InputError(f"{folder}: shard {odd[0].number}/{count} is of other images than shard 1/{count}; run it "
                             "again with the same --sample_seed, --split500, --include_annotated and --where")
        return complete
    if not absent:
        raise InputError(f"{folder}: holds what an interrupted run without --shard made; run its command again")
    count, numbers = min(absent.items(), key=lambda item: len(item[1]))
    raise InputError(f"{folder}: {len(numbers)} of {count} shards haven't ended, such as {numbers[0]}/{count}; run the "
                     f"stage with --shard {numbers[0]}/{count}, then merge")


def _find_difference(folders: Sequence[Path]) -> str:
    """What tells the settings of the parts apart, as far as a shard has ended."""
    known = [ends[0].attributes for folder in folders if (ends := _read_ends(folder))]
    names = {name for each in known for name in each if each[name] != known[0].get(name)}
    return ", ".join(sorted(names)) or "see the commands that made them"
