"""Downloads the public checkpoint of one SAM type.

    python -m scripts.download_checkpoint vit_h        # 2.6 GB
    python -m scripts.download_checkpoint vit_t        # 41 MB, small enough for a CPU

The same command resumes an interrupted download. Size and SHA-256 are checked where they are published here.

Reads:  the network
Writes: <data_dir>/sam_checkpoints/<public file name>
"""
import argparse
from pathlib import Path

from segment_anything.checkpoints import identify
from segment_anything.registry import SAM_TYPES, check_present, default_checkpoint, get_sam_type
from utils.cli import run_stage, stage_parser
from utils.download import download
from utils.errors import InputError
from utils.paths import DATA


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.download_checkpoint", __doc__)
    parser.add_argument("sam_type", metavar="TYPE", help=f"one of {', '.join(SAM_TYPES)}")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data")
    parser.add_argument("--url", help="another source of the same file, checked all the same")
    return parser


def main(args: argparse.Namespace) -> None:
    sam_type = get_sam_type(args.sam_type)
    target = default_checkpoint(args.sam_type, args.data_dir)
    url = args.url or sam_type.url
    if target.is_file():
        check_present(args.sam_type, target)
        _check_existing(target, sam_type.sha256)
        return
    if sam_type.requirement:
        raise InputError(f"{args.sam_type}: is installed with {sam_type.requirement}; "
                         f"run `python -m pip install {sam_type.requirement}`")
    if url is None:
        raise InputError(f"{args.sam_type}: no address to download {sam_type.file_name} from is known here; "
                         f"get it by hand from {sam_type.source} and save it as {target}")
    download(url, target, sam_type.size, sam_type.sha256)
    print(f"{target}: downloaded" + ("" if sam_type.sha256 else "; not checked, no sha256 of it is known here"))


def _check_existing(target: Path, sha256: str | None) -> None:
    if sha256 not in (None, identify(target).sha256):
        raise InputError(f"{target}: is there already, but its sha256 is not that of the published file; "
                         "remove it to download that one")
    print(f"{target}: is there already")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
