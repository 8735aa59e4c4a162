"""What the benchmarks work on: radiographs, predicted masks of them, SAM's weights."""
import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from segment_anything.registry import SAM_TYPES, check_present, default_checkpoint
from utils.cli import select_device
from utils.datasets.annotated import resize_masks
from utils.datasets.cvat import draw_masks, parse_cvat
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.options import positive_int
from utils.paths import DATA, ROOT

SHARED = Path(os.environ.get("SAM_BURDEN_SHARED") or ROOT.parent / "shared")  # as in tests/conftest.py
REAL = SHARED / "data" / "jsrt" / "images"  # chest radiographs
DRAWN = DATA / "phantom" / load_description("phantom").image_folder


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sam_type", choices=tuple(SAM_TYPES), default="demo", help="which SAM")
    parser.add_argument("--sam_checkpoint", type=Path, help="its weights (left out: where the stages look for them)")
    add_device_argument(parser)
    add_image_arguments(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (left out: the GPU, if any)")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_folder", type=Path, default=REAL if REAL.is_dir() else DRAWN,
                        help="folder of radiographs, PNG")
    parser.add_argument("--images", type=positive_int, default=4, help="how many images, one round each")


def choose_device(name: str | None) -> torch.device:
    """"cpu", "cuda", or None for the GPU, if there is one."""
    if name == "cpu":
        return torch.device("cpu")
    return select_device(0 if name == "cuda" else None)


def find_checkpoint(sam_type: str, checkpoint: Path | None) -> Path:
    """SAM's weights; an InputError where they aren't there."""
    checkpoint = checkpoint or default_checkpoint(sam_type, DATA)
    check_present(sam_type, checkpoint)
    return checkpoint


def list_images(folder: Path, count: int) -> list[Path]:
    """The first images of the folder, at least two of them: the first round only warms up."""
    paths = sorted(folder.glob("*.png"))[:count]
    if len(paths) < 2:
        raise InputError(f"{folder}: needs two PNG images or more; `python -m scripts.make_phantoms` draws "
                         "the phantoms, or name another folder with --image_folder")
    return paths


def describe(paths: list[Path]) -> str:
    """How many images of which data set."""
    return f"{len(paths)} images ({paths[0].parents[1].name}), the first one to warm up"


def predictions() -> Iterator[np.ndarray]:
    """What a trained U-Net might say: blurred ground truth with blobs of doubt, float32, (17, 384, 224)."""
    description = load_description("phantom")
    rng = np.random.default_rng(0)
    for image in parse_cvat(ROOT / "annotations_train.xml"):
        masks = resize_masks(draw_masks(image, description.labels), description.input_size)
        doubt = [cv2.GaussianBlur(rng.random(mask.shape, np.float32), (0, 0), 3) for mask in masks]
        blurred = [cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5) for mask in masks]
        yield np.clip(np.stack(blurred) * 0.9 + 6 * (np.stack(doubt) - 0.5), 0, 1)
