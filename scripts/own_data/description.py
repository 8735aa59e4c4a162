"""The description of a data set of one's own as text, and what its keys mean."""
import json
import re
from collections.abc import Mapping
from typing import Any

from utils.datasets.description import MASK_KINDS, DatasetDescription, Metadata

HEAD = "# Written by scripts.init_dataset, which writes it anew when it runs again. Paths are inside this folder.\n"


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
