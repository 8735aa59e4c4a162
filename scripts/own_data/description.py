"""The description of a data set of one's own as text, and what its keys mean."""
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scripts.own_data.annotations import Annotations
from scripts.own_data.images import PREPARED, Radiographs
from utils.datasets.description import MASK_KINDS, DatasetDescription, Metadata

HEAD = "# Written by scripts.init_dataset, which writes it anew when it runs again. Paths are inside this folder.\n"
TABLE, KEPT = "images.csv", "kept"  # of the images; its column of those that may be trained on


def describe(annotations: Annotations, images: Radiographs, size: Sequence[int], sam_type: str, prepare: str,
             annotated: int, withheld: Collection[str]) -> dict[str, Any]:
    """The description as a table, without what is measured."""
    suffixes = sorted({image.place.suffix for image in images.images.values()})
    metadata = {"file": TABLE, "stem_column": "stem", "split_column": "split"}
    if any(image.is_mirrored for image in images.images.values()):
        metadata["mirror"] = {"mirrored": "1"}
    if withheld:
        metadata["keep"] = {KEPT: "1"}
    table = {"labels": annotations.labels, "input_size": list(size), "image_folder": f"{PREPARED}/img",
             "image_suffix": suffixes if len(suffixes) > 1 else suffixes[0], "prepare": prepare,
             "unlabeled": "not_annotated" if annotated < len(images.images) else "rest_of_train", "sam_type": sam_type}
    if images.in_folders:
        table["subfolders"] = True
    if annotated == len(images.images):
        print("all images are annotated: those for training that a run doesn't take get pseudo labels", file=sys.stderr)
    return {**table, "masks": annotations.masks, "metadata": metadata}


def write_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML: its tables last, those inside of them in one line."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for name, inner in table.items():
        if isinstance(inner, Mapping):
            lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {_value(value)}" for key, value in inner.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # text, numbers and true are written alike


def explain_keys() -> str:
    """The keys of a description, by what their classes say of themselves."""
    texts = ["The keys of a description:", _body(DatasetDescription), f"[metadata]: {_body(Metadata)}"]
    texts += [f'[masks], kind = "{kind}": {_body(masks)}\n  keys: '
              + ", ".join(masks.__struct_fields__) for kind, masks in MASK_KINDS.items()]
    return "\n\n".join(texts)


def _body(described: type) -> str:
    lines = [re.sub(r"^    ", "", line) for line in (described.__doc__ or "").splitlines()]
    return "\n".join(lines).strip()
