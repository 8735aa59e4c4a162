"""Makes one file of the masks that the shards of a stage made.

    python -m scripts.merge_masks data/seg_masks/ID/raw.h5

To be run once, when all shards have ended. The file is what one process writes, but for the record of the runs.

Reads   <file>.<digest>.part/, what `--shard I/N` left
Writes  the file (layout: utils/mask_store.py), and removes the folder
"""
import argparse
from pathlib import Path

from utils.cli import run_stage, stage_parser
from utils.mask_shards import merge_masks


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.merge_masks", __doc__)
    parser.add_argument("masks", type=Path, metavar="FILE", help="the masks, as each shard names them at its end")
    return parser


def main(args: argparse.Namespace) -> None:
    merge_masks(args.masks)
    print(f"masks: {args.masks}")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
