"""Refines the U-Net's masks of the unlabeled images by a random walk on the image, without SAM (paper's comparison).

    python -m scripts.save_random_walk_segmentations
    python -m scripts.save_random_walk_segmentations --dataset phantom --num_train_samples 5 --random_walk active

With the released code's settings no pixel is left for the walk to decide, and only the mask cleaning acts. With
`active` the background is eroded, and the walk decides the ring between it and the masks. A rerun only refines what is
missing.

Reads   a model by its id, images of the data set
Writes  data/seg_masks/<model id>/random_walk_<settings>_<ccl selection>.h5
"""
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.refine import add_ccl_argument
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    add_random_walk_argument,
    load_model_and_data,
    random_walk_kind,
    task_parameters,
    unlabeled_stems,
)
from unet_training.checkpoint import Network
from unet_training.data import ImageDataset
from unet_training.prediction import predict
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages, read_scaled
from utils.mask_store import MaskWriter
from utils.paths import mask_file
from utils.random_walk import SETTINGS, random_walk_masks
from utils.tracking.experiment import start


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_random_walk_segmentations", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_prediction_arguments(parser)
    add_random_walk_argument(parser)
    add_ccl_argument(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of refined masks."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device)
    path = mask_file(args.data_dir, model.id, random_walk_kind(args))
    attributes = {"clearml_model_id": model.id, "dataset": args.dataset}
    writer = MaskWriter(path, data.description.labels, attributes)
    missing = writer.missing(unlabeled_stems(args, model, data))
    if missing:
        with start("save_random_walk_segmentations", task_parameters(args, "random_walk"),
                   ("random_walk", args.dataset)) as experiment:
            experiment.use_model(model.id)
            with writer:
                writer.write_all(walk_images(args, u_net, data, missing, device))
    print(f"refined masks: {path} ({len(missing)} new)")
    return path


def walk_images(args: argparse.Namespace, u_net: Network, data: AnnotatedImages, stems: Sequence[str],
                device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (stem, refined masks)."""
    settings = SETTINGS[args.random_walk]
    for stem, probabilities in predict(u_net, ImageDataset(data, stems), device, args.infer_batch_size):
        grey = 255 * read_scaled(data.image_path(stem), data.description)
        yield stem, random_walk_masks(grey, clean_masks(probabilities, args.ccl_selection), settings)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
