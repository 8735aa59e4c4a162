"""Trains the demo's initial U-Net in float32 and in bfloat16 from several seeds, and compares their Dice.

A third training, in float32 from weights that are larger by one part in a million, shows how far trainings drift apart
by rounding alone.

    python -m benchmarks.bf16_dice
    python -m benchmarks.bf16_dice --seeds 1 2 3 4 5 --epochs 96

The times are those of a whole training, without the first seed's where there are more. The largest difference is that
of the test images' mean Dice, in points of percent.

Reads   the phantoms and annotations (python -m scripts.make_phantoms)
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.measure import ReportOptions, Step, Stopwatch, report
from scripts import evaluate
from unet_training import training
from unet_training.networks.registry import Architecture
from utils.cli import run_stage, select_device, stage_parser
from utils.options import add_options, options_from, positive_int
from utils.paths import DATA

DEMO = ("--num_train_samples", "20", "--data_sample_per_epoch", "60", "--batch_size", "4", "--lr", "4e-3",
        "--base_width", "16", "--n_last_channel", "16", "--input_size", "128", "80")
STEP = "initial training"
NUDGE = 1e-6


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.bf16_dice", __doc__)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="three trainings each")
    parser.add_argument("--epochs", type=positive_int, default=24, help="of a training, 60 images each")
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = select_device(None)
    watch, points = Stopwatch(device), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(SAM_BURDEN_RUNS=folder, CLEARML_OFFLINE_MODE="1")
        for seed in args.seeds:
            models = [watch.time(STEP, who, train, args.data_dir, args.epochs, seed, options)
                      for who, options in (("baseline", []), ("ours", ["--bf16"]))]
            with mock.patch.object(Architecture, "build", nudge(Architecture.build)):
                models.append(train(args.data_dir, args.epochs, seed, []))
            points.append([dice(args.data_dir, model, Path(folder)) for model in models])
    points = np.array(points)
    differences = points[:, 1:].T - points[:, 0]
    step = watch.step(STEP, np.abs(differences[0]).max(), 0)
    bf16, rounding = (", ".join(f"{points:+.2f}" for points in by_seed) for by_seed in differences)
    means = " and ".join(f"{mean:.2f}" for mean in points.mean(axis=0)[:2])
    report(options_from(ReportOptions, args),
           f"bf16_dice --seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs}", device,
           f"baseline: float32, ours: bfloat16; mean test Dice {means}, differences by seed {bf16}; of float32 from "
           f"weights {NUDGE:.0e} larger {rounding}; in float32 the seeds differ by {np.ptp(points[:, 0]):.2f}", [step])
    return [step]


def train(data_dir: Path, epochs: int, seed: int, options: list[str]) -> str:
    """The id of a model trained from that seed."""
    return training.main(training.get_args_parser().parse_args(
        ["--dataset", "phantom", "--data_dir", str(data_dir), "--epochs", str(epochs), "--seed", str(seed),
         *DEMO, *options]))


def nudge(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same network, every weight a little larger."""
    @torch.no_grad()
    def build_nudged(*arguments: object) -> nn.Module:
        model = build(*arguments)
        for weights in model.parameters():
            weights.mul_(1 + NUDGE)
        return model
    return build_nudged


def dice(data_dir: Path, model_id: str, folder: Path) -> float:
    """Of the test images, in percent."""
    return evaluate.main(evaluate.get_args_parser().parse_args(
        ["--dataset", "phantom", "--data_dir", str(data_dir), "--model_id", model_id,
         "--results_dir", str(folder)])).mean


if __name__ == "__main__":
    run_stage(main, get_args_parser())
