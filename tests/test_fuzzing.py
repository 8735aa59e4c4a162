"""Damaged files of every kind are read, or refused with a line; nothing else comes of them.

`make stress` tries 20,000 files, the other test runs a few hundred.
"""
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segment_anything.checkpoints import CheckpointId, read_state_dict
from segment_anything.embeddings import ImageEmbedding, load_embedding, save_embedding
from unet_training.checkpoint import Training, load_checkpoint, save_checkpoint
from unet_training.networks.u_net import UNet
from utils.datasets.cvat import draw_masks, parse_cvat
from utils.datasets.description import read_description
from utils.errors import InputError
from utils.files import image_size, read_grey
from utils.mask_store import MaskStore, MaskWriter
from utils.records import read_record, write_record
from utils.tables import matching_stems, read_stems
from utils.tracking.models import ModelRecord

MANY = bool(os.environ.get("STRESS"))
LABELS = ("Radius", "Ulna")
XML = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="img/1.png" width="40" height="30" subset="Train"><polygon label="Knochen" points="1.5,2;20,3;12,25">
<attribute name="Anatomie">Radius</attribute></polygon><mask label="Knochen" rle="3, 4, 5" left="2" top="3" width="6"
height="2"><attribute name="Anatomie">Ulna</attribute></mask><ellipse label="Knochen" cx="9" cy="9" rx="3" ry="4">
<attribute name="Anatomie">Ulna</attribute></ellipse></image></annotations>"""
TOML = """labels = ["heart", "lung"]
input_size = [36, 60]
mean = 0.5
std = 0.25
pos_weight = [3.0, 4.0]
image_folder = "img"
prepare = "copy them"
unlabeled = "not_annotated"
sam_type = "vit_b"
[masks]
kind = "label_maps"
folder = "masks"
train = 4
val = 1
"""
CSV = "filestem,laterality,projection\n1_a,L,1\n2_b,R,1\n3_c,R,2\n"
SOME_ID = CheckpointId("some.pth", "0" * 64)


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17), np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * 200 if kind == "tiff" else pixels)
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def write_masks(path: Path) -> None:
    with MaskWriter(path, LABELS, {"made_by": "test"}) as writer:
        for stem in ("1", "2"):
            writer.write(stem, np.eye(9, 14, int(stem))[None].repeat(2, 0) > 0, np.array([0.5, np.nan]), "image")


def write_foreign_masks(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["labels"] = json.dumps({name: channel for channel, name in enumerate(LABELS)})
        file["segmentation_mask/1"] = np.ones((2, 9, 14), bool)


def read_masks(path: Path) -> None:
    store = MaskStore(path, LABELS)
    for stem in store.stems:
        store.mask(stem)
        store.estimated_dice(stem)


def read_annotations(path: Path) -> None:
    for image in parse_cvat(path):
        if image.width * image.height < 10 ** 6:
            draw_masks(image, LABELS)


def read_table(path: Path) -> None:
    read_stems(path, "filestem")
    matching_stems(path, "filestem", {"projection": "1"})


def read_image(path: Path) -> None:
    height, width = image_size(path)
    if height * width < 10 ** 7:
        read_grey(path)


MODEL = ModelRecord("unet.pt", {"lr": 1e-3, "input_size": [4, 6]}, LABELS, (), "offline-1", 12.5, "0123")
EMBEDDING = ImageEmbedding({"image": torch.ones(2, 3, 4)}, (6, 8), (6, 8), 8, SOME_ID)
TRAINING = Training("phantom", LABELS, (32, 48), 0.4, 0.2)
KINDS: dict[str, tuple[int, Callable[[Path], object], Callable[[Path], object]]] = {  # cases, how written, how read
    "annotations.xml": (4500, lambda path: path.write_text(XML), read_annotations),
    "description.toml": (3000, lambda path: path.write_text(TOML), lambda path: read_description(path, "mine")),
    "table.csv": (3000, lambda path: path.write_text(CSV), read_table),
    "image.png": (1500, lambda path: path.write_bytes(picture("png")), read_image),
    "image.jpg": (1000, lambda path: path.write_bytes(picture("jpeg")), read_image),
    "image.tif": (1000, lambda path: path.write_bytes(picture("tiff")), read_image),
    "masks.h5": (1500, write_masks, read_masks),
    "foreign_masks.h5": (150, write_foreign_masks, read_masks),
    "embedding.h5": (1000, lambda path: save_embedding(path, EMBEDDING), lambda path: load_embedding(path, SOME_ID)),
    "model.pt": (1000, lambda path: save_checkpoint(path, UNet(2, 2, 2), TRAINING), load_checkpoint),
    "sam.pth": (1000, lambda path: torch.save({"model": {"mask_decoder.x": torch.ones(3)}}, path), read_state_dict),
    "sam.safetensors": (350, lambda path: _save_safetensors(path), read_state_dict),
    "model.json": (1000, lambda path: write_record(path, MODEL), lambda path: read_record(path, ModelRecord)),
}


def _save_safetensors(path: Path) -> None:
    from safetensors.torch import save_file
    save_file({"mask_decoder.x": torch.ones(3)}, path)


def test_the_kinds_are_as_many_cases_as_are_promised():
    assert sum(count for count, _, _ in KINDS.values()) == 20_000


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Ways to damage a file: bits flipped, bytes replaced, removed, inserted or repeated, the end missing."""
    changes = draw(st.lists(st.tuples(st.sampled_from(("flip", "replace", "remove", "insert", "repeat", "end")),
                                      st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12)),
                            min_size=1, max_size=4))

    def damage(content: bytes) -> bytes:
        for how, share, piece in changes:
            at, length = int(share * len(content)), len(piece)
            before, after = content[:at], content[at + length:]
            middle = content[at:at + length]
            content = {"flip": before + bytes(byte ^ 1 << piece[0] % 8 for byte in middle[:1]) + middle[1:] + after,
                       "replace": before + piece + after, "remove": before + after,
                       "insert": before + piece + middle + after, "repeat": before + middle * 2 + after,
                       "end": before}[how]
        return content

    return damage


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(name, tmp_path):
    cases, write, read = KINDS[name]
    path, outcomes = tmp_path / name, Counter()
    write(path)
    whole = path.read_bytes()
    read(path)

    @settings(max_examples=cases if MANY else max(5, cases // 60), deadline=None, derandomize=not MANY, database=None,
              suppress_health_check=list(HealthCheck))
    @given(damages())
    def try_damage(damage: Callable[[bytes], bytes]) -> None:
        path.write_bytes(damage(whole))
        try:
            read(path)
            outcomes["read"] += 1
        except InputError as error:
            assert name.split(".")[0] in str(error)
            outcomes["refused"] += 1

    try_damage()
    print(f"\n{name}: {outcomes.total()} damaged files, {outcomes['refused']} refused, {outcomes['read']} read")
