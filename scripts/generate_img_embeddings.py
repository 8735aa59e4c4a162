"""Computes SAM's embeddings of the images once, for all later refinements (paper, section 5).

    python -m scripts.generate_img_embeddings --gpu_id 0
    python -m scripts.generate_img_embeddings --dataset phantom
    python -m scripts.generate_img_embeddings --dataset jsrt --num_train_samples 20 --sam_type vit_t --sam_checkpoint mobile_sam.pt

About 4 MB an image (vit_h, vit_l, vit_b, vit_t, medsam), 2 MB with --embeddings float16 or bf16. A rerun only computes what is missing.

Reads   images of the data set at their original resolution, SAM's weights (python -m scripts.download_checkpoint vit_h)
Writes  data/<dataset>/sam_embeddings/<sam type>/<stem>.h5, or <sam type>_<precision>/ (layout: segment_anything/embeddings.py)
"""  # noqa: E501 (a command to copy)
import argparse
from collections.abc import Sequence

import torch

from segment_anything.embeddings import save_missing_embeddings
from unet_training.arguments import (
    add_common_arguments,
    add_sam_arguments,
    add_unlabeled_arguments,
    resolve_sam,
    sam_name,
)
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.paths import embedding_folder


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.generate_img_embeddings", __doc__)
    add_common_arguments(parser)
    add_unlabeled_arguments(parser)
    parser.add_argument("--num_train_samples", type=int, default=43,
                        help="labeled images, where the unlabeled ones are the rest of the training split")
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="unlabeled",
                        help="which images")
    add_sam_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    device = select_device(args.gpu_id)
    data = open_dataset(args.dataset, args.data_dir)
    if args.split == "unlabeled":
        stems = data.unlabeled_stems(args.num_train_samples, args.split500, args.seed)
    else:
        stems = data.stems(args.split)
    embed_images(args, data, stems, device)
    print(f"embeddings: {embedding_folder(args.data_dir, args.dataset, sam_name(args, data))}")


def embed_images(args: argparse.Namespace, data: AnnotatedImages, stems: Sequence[str], device: torch.device) -> None:
    """Computes what is missing of these images' embeddings; loads SAM's encoder only if something is."""
    sam_type, checkpoint = resolve_sam(args, data)
    folder = embedding_folder(args.data_dir, args.dataset, sam_name(args, data))
    save_missing_embeddings([(stem, data.image_path(stem)) for stem in stems], folder, sam_type, checkpoint, device,
                            args.embeddings, data.description.max_grey_value)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
