"""Refines the U-Net's masks of the unlabeled images with SAM: the refined pseudo labels (paper, section 6).

    python -m scripts.save_refined_segmentations
    python -m scripts.save_refined_segmentations --dataset phantom --num_train_samples 5
    python -m scripts.save_refined_segmentations --sam_type medsam --prompt1st box --prompt2nd

From each class of the U-Net's segmentation come prompts (box, points), from which SAM draws a better mask. Embeddings
that are missing are computed first. A rerun only refines what is missing; other options go to another file.

Reads   a model by its id, images of the data set, data/<dataset>/sam_embeddings/<sam type>/, SAM's weights
Writes  data/seg_masks/<model id>/sam_<prompts and options>_<sam type>.h5 with SAM's estimate of each mask's Dice
"""
import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from scripts.generate_img_embeddings import embed_images
from segment_anything.checkpoints import identify
from segment_anything.embeddings import ImageEmbedding, embedding_path, load_embedding
from segment_anything.refinement.refine import Refined, add_refinement_arguments, options_from, refine_all
from segment_anything.registry import check_present
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    add_sam_arguments,
    load_model_and_data,
    print_sam_notice,
    refined_kind,
    resolve_sam,
    sam_name,
    task_parameters,
    unlabeled_stems,
)
from unet_training.checkpoint import Network
from unet_training.data import ImageDataset
from unet_training.prediction import predict
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.mask_store import MaskStore, MaskWriter
from utils.overlap import map_threaded
from utils.paths import embedding_folder, mask_file
from utils.tracking.experiment import start


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_refined_segmentations", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_prediction_arguments(parser)
    add_sam_arguments(parser)
    add_refinement_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of refined masks."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device)
    labels = data.description.labels
    path = mask_file(args.data_dir, model.id, refined_kind(args, data))
    writer = MaskWriter(path, labels, {"clearml_model_id": model.id, "dataset": args.dataset,
                                       "refine_params": refine_params(args, data)})
    missing = writer.missing(unlabeled_stems(args, model, data))
    if missing:
        parameters = task_parameters(args, "refine")
        with start("save_refined_segmentations", parameters, ("refine", args.dataset)) as experiment:
            experiment.use_model(model.id)
            with writer:
                writer.write_all((stem, refined.mask, refined.estimated_dice) for stem, refined in
                                 refine_images(args, u_net, data, missing, device))
            store = MaskStore(path, labels)
            estimates = [store.estimated_dice(stem) for stem in missing]
            experiment.histogram("estimated dice per class", class_means(estimates), labels, 0)
    print(f"refined masks: {path} ({len(missing)} new)")
    print_sam_notice(args, data)
    return path


def refine_images(args: argparse.Namespace, u_net: Network, data: AnnotatedImages, stems: Sequence[str],
                  device: torch.device) -> Iterator[tuple[str, Refined]]:
    """Yields (stem, refined masks); computes missing embeddings first."""
    decoder, images = predictions_and_embeddings(args, u_net, data, stems, device)
    yield from zip(stems, refine_all((image for _, *image in images), decoder, options_from(args)), strict=True)


def predictions_and_embeddings(
        args: argparse.Namespace, u_net: Network, data: AnnotatedImages, stems: Sequence[str], device: torch.device
        ) -> tuple[StoredEmbeddingDecoder, Iterator[tuple[str, np.ndarray, ImageEmbedding]]]:
    """SAM's decoder and, of each image, (stem, probabilities, embedding), the next embedding being read meanwhile;
    computes missing ones first."""
    sam_type, checkpoint = resolve_sam(args, data)
    embed_images(args, data, stems, device)
    decoder = StoredEmbeddingDecoder.load(sam_type, checkpoint, device)
    folder = embedding_folder(args.data_dir, args.dataset, sam_name(args, data))
    predicted = predict(u_net, ImageDataset(data, stems), device, args.infer_batch_size)
    embeddings = map_threaded(lambda stem: load_embedding(embedding_path(folder, stem), decoder.checkpoint), stems)
    return decoder, ((*prediction, embedding) for prediction, embedding in zip(predicted, embeddings, strict=True))


def refine_params(args: argparse.Namespace, data: AnnotatedImages) -> str:
    """What the masks depend on, as JSON: a file of refined masks is never continued with anything else."""
    sam_type, checkpoint = resolve_sam(args, data)
    check_present(sam_type, checkpoint)
    return json.dumps({**asdict(options_from(args)), "sam_type": sam_type, **asdict(identify(checkpoint))})


def class_means(estimates: Sequence[np.ndarray]) -> list[float]:
    """Mean over images per class, NaN for a class that SAM was never asked for."""
    values = np.stack(estimates)
    counts = (~np.isnan(values)).sum(axis=0)
    return np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan).tolist()


if __name__ == "__main__":
    run_stage(main, get_args_parser())
