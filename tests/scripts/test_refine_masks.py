"""Masks from elsewhere, refined without a network: as the upstream package, whatever they come as."""
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from skimage.measure import label as connect

from scripts import refine_masks
from segment_anything import SamPredictor
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.registry import load_sam
from utils.errors import InputError

LABELS = ("left", "right")


@pytest.fixture
def given(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of two images, one in a folder inside, and the masks of each, bool (2, H, W)."""
    rng, masks = np.random.default_rng(2), {}
    for name, (height, width) in (("a.png", (80, 130)), ("p/b.png", (90, 60))):
        drawn = np.zeros((2, height, width), bool)
        rows, columns = np.ogrid[:height, :width]
        for channel, center in enumerate((0.3, 0.7)):
            across, along = (columns - center * width) / (width / 7), (rows - height / 2) / (height / 4)
            drawn[channel] = across ** 2 + along ** 2 < 1
        grey = 60 + 120 * drawn.any(axis=0) + rng.integers(0, 20, (height, width))
        drawn[1, 2:5, 2:6] = True  # a smaller component
        (tmp_path / "img" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "img" / name), grey.astype(np.uint8))
        masks[name] = drawn
    return tmp_path / "img", masks


def run(images: Path, masks: Path, out: Path, *more: str) -> dict:
    args = ["--images", str(images), "--masks", str(masks), "--out", str(out), "--sam_type", "demo", *more]
    table = refine_masks.main(refine_masks.get_args_parser().parse_args(args))
    return json.loads(table.read_text(encoding="utf-8"))


def read(out: Path, entry: dict) -> np.ndarray:
    pictures = [np.array(Image.open(out / file)) for file in entry["files"]]
    return np.stack([pictures[0] == value for value in (1, 2)] if len(pictures) == 1 else
                    [picture == 255 for picture in pictures])


def save_label_maps(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, (left, right) in masks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), (left + 2 * right).astype(np.uint8))
    return folder


def save_coco(path: Path, masks: dict[str, np.ndarray]) -> Path:
    images, shapes = [], []
    for number, (name, drawn) in enumerate(masks.items(), 1):
        images.append({"id": number, "file_name": name, "height": drawn.shape[1], "width": drawn.shape[2]})
        for channel, mask in enumerate(drawn, 1):
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            shapes.append({"id": 2 * number + channel, "image_id": number, "category_id": channel, "iscrowd": 1,
                           "segmentation": {**encoded, "counts": encoded["counts"].decode()}})
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS, 1)]
    path.write_text(json.dumps({"images": images, "annotations": shapes, "categories": categories}))
    return path


def ask_upstream(image: Path, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The box of the largest component, its centroid, then both, by the upstream package."""
    components = connect(mask, connectivity=2)
    rows, columns = np.nonzero(components == np.bincount(components[mask]).argmax())
    predictor = SamPredictor(load_sam("demo", DEMO_SAM_WEIGHTS))
    predictor.set_image(np.repeat(np.array(Image.open(image))[..., None], 3, axis=2))
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
    _, _, logits = predictor.predict(box=box, multimask_output=False)
    center = np.rint([[columns.mean(), rows.mean()]])
    drawn, iou, _ = predictor.predict(center, np.array([1]), mask_input=logits, multimask_output=False)
    return drawn[0], 2 * iou[0] / (1 + iou[0])


@pytest.mark.slow
def test_masks_are_those_of_the_upstream_package_from_any_format(given, tmp_path):
    images, masks = given
    prompts = ("--prompt1st", "box", "--prompt2nd", "pos_points")
    coco = run(images, save_coco(tmp_path / "coco.json", masks), tmp_path / "coco", *prompts)
    maps = run(images, save_label_maps(tmp_path / "maps", masks), tmp_path / "maps_out", *prompts, "--labels", *LABELS)
    assert [entry["image"] for entry in coco["images"]] == ["a.png", "p/b.png"] and coco["labels"] == list(LABELS)
    for of_coco, of_maps in zip(coco["images"], maps["images"], strict=True):
        drawn = read(tmp_path / "coco", of_coco)
        np.testing.assert_array_equal(drawn, read(tmp_path / "maps_out", of_maps))
        for channel, label in enumerate(LABELS):
            expected, estimate = ask_upstream(images / of_coco["image"], masks[of_coco["image"]][channel])
            assert np.mean(drawn[channel] != expected) < 1e-3 and expected.sum() > 50
            assert of_coco["labels"][label]["estimated_dice"] == pytest.approx(estimate, abs=1e-3)
        assert (tmp_path / "coco" / of_coco["overlay"]).is_file()
    assert "demo SAM" in coco["notice"]


@pytest.mark.slow
def test_a_rerun_refines_masks_that_have_changed(given, tmp_path, monkeypatch):
    images, masks = given
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.write(save_coco(tmp_path / "coco.json", {"a.png": masks["a.png"]}), "annotations/instances.json")
    assert len(run(images, tmp_path / "masks.zip", tmp_path / "out")["images"]) == 1  # b has no mask
    made, make = [], refine_masks.Refiner.__call__
    monkeypatch.setattr(refine_masks.Refiner, "__call__", lambda self, image, path: made.append(image) or make(
        self, image, path))
    run(images, save_coco(tmp_path / "coco.json", masks), tmp_path / "out")
    assert made == ["p/b.png"]
    masks["a.png"] = np.roll(masks["a.png"], 3, axis=1)
    run(images, save_coco(tmp_path / "coco.json", masks), tmp_path / "out")
    assert made == ["p/b.png", "a.png"]
    with pytest.raises(InputError, match=r"was made with masks = .*name another --out"):
        run(images, tmp_path / "coco.json", tmp_path / "out", "--prompt2nd")


def test_what_fits_nothing(given, tmp_path):
    images, masks = given
    with pytest.raises(InputError, match=r"^--masks: none fits an image in --images; name"):
        run(images, save_coco(tmp_path / "coco.json", {"c.png": masks["a.png"]}), tmp_path / "out")
    with pytest.raises(InputError, match=r"^--masks .*nowhere: no such file or folder"):
        run(images, tmp_path / "nowhere", tmp_path / "out")
