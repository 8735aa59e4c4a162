"""Times a training step of the U-Net: a plain loop, and ours in float32 and in bfloat16.

    python -m benchmarks.training
    python -m benchmarks.training --base_width 16 --images 4 --input_size 128 80

The first line is the paper's setting and takes minutes on a CPU. Training starts from the same random weights each
time; the largest difference is that of the weights after the step.

Reads   the phantoms and annotations (python -m scripts.make_phantoms)
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import copy
from pathlib import Path

import torch

from benchmarks import paper_way
from benchmarks.inputs import add_device_argument, choose_device
from benchmarks.measure import ReportOptions, Step, Stopwatch, limits, report
from unet_training.data import LabeledDataset
from unet_training.epoch import bce_loss, train_epoch
from unet_training.networks.u_net import UNet
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.options import add_options, options_from, positive_int
from utils.paths import DATA

AUGMENTATION = 0.03


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.training", __doc__)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    parser.add_argument("--rounds", type=positive_int, default=3, help="how often each is timed, and once to warm up")
    parser.add_argument("--base_width", type=positive_int, default=64, help="channels of the U-Net's first level")
    parser.add_argument("--images", type=positive_int, default=16, help="in a batch")
    parser.add_argument("--input_size", type=positive_int, nargs=2, default=(384, 224), metavar=("H", "W"))
    add_device_argument(parser)
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = choose_device(args.device)
    data = open_dataset("phantom", args.data_dir, args.input_size)
    torch.manual_seed(0)
    model = UNet(len(data.description.labels), args.base_width).to(device)
    steps = training_steps(data, model, args.images, args.rounds, device)
    size = "x".join(map(str, args.input_size))
    report(options_from(ReportOptions, args), f"training --base_width {args.base_width} --images {args.images}", device,
           f"{args.rounds} rounds after one to warm up; a batch of {args.images} images of {size} in a step; in "
           f"GFLOP/s {limits(device)}", steps)
    return steps


def training_steps(data: AnnotatedImages, start: UNet, images: int, rounds: int, device: torch.device) -> list[Step]:
    """Both precisions, `rounds` steps each on a batch of so many images, after one to warm up."""
    pairs = LabeledDataset(data, data.stems("train", images))
    batch = tuple(torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    loss = bce_loss(data.description.pos_weight, device)
    watch, steps = Stopwatch(device), []
    for name, bf16 in (("training step, float32", False), ("training step, bf16 option", True)):
        for _ in range(rounds + 1):
            models = [copy.deepcopy(start) for _ in range(2)]
            optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0) for model in models]
            torch.manual_seed(1)
            watch.time(name, "baseline", paper_way.train_step, models[0], *batch, loss, optimizers[0], device,
                       AUGMENTATION)
            torch.manual_seed(1)
            watch.time(name, "ours", train_epoch, models[1], [batch], loss, optimizers[1], device, AUGMENTATION, bf16)
        differences = [(a - b).abs().max().item() for a, b in zip(*(m.parameters() for m in models), strict=True)]
        steps.append(watch.step(name, max(differences), 0))
    return steps


if __name__ == "__main__":
    run_stage(main, get_args_parser())
