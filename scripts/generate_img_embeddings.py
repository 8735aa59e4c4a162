"""Computes SAM's embeddings of the images once, for all later refinements.

    python -m scripts.generate_img_embeddings --gpu_id 0
    python -m scripts.generate_img_embeddings --dataset phantom
    python -m scripts.generate_img_embeddings --dataset jsrt --num_train_samples 20 --sam_type vit_t --sam_checkpoint mobile_sam.pt

About 4 MB an image, 17 MB of SAM 2; half of it with --embeddings float16 or bf16. A rerun only computes what is missing.

Reads   images of the data set at their original resolution, SAM's weights (python -m scripts.download_checkpoint vit_h)
Writes  data/<dataset>/sam_embeddings/<sam type>/<stem>.h5, or <sam type>_<precision>/ (layout: segment_anything/embeddings.py)
"""  # noqa: E501 (a command to copy)
import argparse

from segment_anything.embeddings import PRECISIONS
from segment_anything.options import Sam, SamOptions
from unet_training.distributed import wait_for_all
from unet_training.models import DataOptions, Selection, add_common_arguments, count_labeled
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.options import add_options, options_from
from utils.ranks import Shard, add_shard_argument, work_on


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.generate_img_embeddings", __doc__)
    add_common_arguments(parser)
    add_options(parser, Selection)
    parser.add_argument("--num_train_samples", type=int, metavar="N",
                        help="labeled images, where the unlabeled ones are the rest of the training split (left out: "
                             "all of your own data set, 43 of ours); -1: all")
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="unlabeled",
                        help="which images")
    add_options(parser, SamOptions)
    add_shard_argument(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    device = select_device(args.gpu_id)
    data = options_from(DataOptions, args).open()
    sam = Sam.choose(options_from(SamOptions, args), data)
    if not sam.stored:
        raise InputError(f"--embeddings none: this stage is for storing them; choose {', '.join(PRECISIONS)}")
    with work_on(shard := Shard.choose(args.shard)):
        if args.split == "unlabeled":
            chosen = options_from(Selection, args).choose(data, count_labeled(args.num_train_samples, data))
            stems = data.readable(shard.share(chosen))
        else:
            stems = shard.share(data.stems(args.split))
        sam.embed_missing(data, stems, device)
        wait_for_all()
    print(f"embeddings: {sam.folder(data)}")


if __name__ == "__main__":
    run_stage(main, get_args_parser(), shared=True)
