"""Asks SAM how far it agrees with the U-Net's masks of the unlabeled images (paper's comparison).

    python -m scripts.add_sam_agreement
    python -m scripts.add_sam_agreement --dataset phantom --num_train_samples 5

unet_training.training_with_mean_teacher takes the masks with which SAM agrees as labels. A rerun only adds what is
missing.

Reads   a model by its id, images of the data set, data/<dataset>/sam_embeddings/<sam type>/, SAM's weights
Writes  data/seg_masks/<model id>/agreement_<sam type>.h5: the U-Net's masks, with SAM's agreement (Dice) on each class
        as their estimated Dice
"""
import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from scripts.save_refined_segmentations import predictions_and_embeddings
from segment_anything.checkpoints import identify
from segment_anything.refinement.agreement import sam_agreement
from segment_anything.registry import check_present
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    add_sam_arguments,
    agreement_kind,
    load_model_and_data,
    print_sam_notice,
    resolve_sam,
    task_parameters,
    unlabeled_stems,
)
from unet_training.checkpoint import Network
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.mask_store import MaskWriter
from utils.paths import mask_file
from utils.tracking.experiment import start


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.add_sam_agreement", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_prediction_arguments(parser)
    add_sam_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of masks."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device)
    sam_type, checkpoint = resolve_sam(args, data)
    check_present(sam_type, checkpoint)
    path = mask_file(args.data_dir, model.id, agreement_kind(args, data))
    attributes = {"clearml_model_id": model.id, "dataset": args.dataset,
                  "refine_params": json.dumps(asdict(identify(checkpoint)))}
    writer = MaskWriter(path, data.description.labels, attributes)
    missing = writer.missing(unlabeled_stems(args, model, data))
    if missing:
        with start("add_sam_agreement", task_parameters(args, "agreement"), ("agreement", args.dataset)) as experiment:
            experiment.use_model(model.id)
            with writer:
                writer.write_all(agreements(args, u_net, data, missing, device))
    print(f"masks with agreement: {path} ({len(missing)} new)")
    print_sam_notice(args, data)
    return path


def agreements(args: argparse.Namespace, u_net: Network, data: AnnotatedImages, stems: Sequence[str],
               device: torch.device) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (stem, the U-Net's masks, agreement on each class); computes missing embeddings first."""
    decoder, images = predictions_and_embeddings(args, u_net, data, stems, device)
    for stem, probabilities, embedding in images:
        yield stem, probabilities > 0.5, sam_agreement(probabilities, embedding, decoder)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
