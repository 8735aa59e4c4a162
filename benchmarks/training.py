"""Times a training step and the prediction of images: a plain loop, and ours in float32 and in bfloat16.

    python -m benchmarks.training
    python -m benchmarks.training --base_width 16 --batch_size 4 --input_size 128 80

The first line is the paper's setting and takes minutes on a CPU. Training starts from the same random weights each
time; the largest difference is that of the weights after the step. Of the prediction, pixels of the masks are compared.

Reads   the sample data's images and annotations (python -m scripts.make_phantoms)
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import copy
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks import paper_way
from benchmarks.measure import Step, Stopwatch, add_report_arguments, report
from scripts.segmentation_dataset import AnnotatedImages, ImageDataset, LabelledDataset, open_dataset
from unet_training.epoch import bce_loss, train_epoch
from unet_training.hyper_params import positive_int
from unet_training.prediction import predict
from unet_training.u_net import UNet
from utils.cli import run_stage, select_device, stage_parser
from utils.mask_store import MaskStore, MaskWriter
from utils.paths import DATA

PREDICTED = 4  # batches of images in a round of prediction
AUGMENTATION = 0.03


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.training", __doc__)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    parser.add_argument("--rounds", type=positive_int, default=3, help="how often each is timed, and once to warm up")
    parser.add_argument("--base_width", type=positive_int, default=64, help="channels of the U-Net's first level")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="images in a batch")
    parser.add_argument("--input_size", type=positive_int, nargs=2, default=(384, 224), metavar=("H", "W"))
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    add_report_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    device = select_device(args.gpu_id)
    data = open_dataset("phantom", args.data_dir, args.input_size)
    torch.manual_seed(0)
    model = UNet(len(data.description.labels), args.base_width).to(device)
    steps = [*training_steps(args, data, model, device), prediction_step(args, data, model, device)]
    size = "x".join(map(str, args.input_size))
    report(args, f"training --base_width {args.base_width} --batch_size {args.batch_size}", device,
           f"{args.rounds} rounds after one to warm up; a batch of {args.batch_size} images of {size} in a step, "
           f"{PREDICTED} of them predicted", steps)
    return steps


def training_steps(args: argparse.Namespace, data: AnnotatedImages, start: UNet, device: torch.device) -> list[Step]:
    pairs = LabelledDataset(data, data.stems("train", args.batch_size))
    batch = tuple(torch.stack(each) for each in zip(*pairs, strict=True))
    loss = bce_loss(data.description.positive_weights, device)
    watch, steps = Stopwatch(device), []
    for name, bf16 in (("training step, float32", False), ("training step, bf16 option", True)):
        for _ in range(args.rounds + 1):
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


def prediction_step(args: argparse.Namespace, data: AnnotatedImages, model: UNet, device: torch.device) -> Step:
    """Per image."""
    stems = data.unlabelled_stems(0, True, 0)[:PREDICTED * args.batch_size]
    watch, name, labels = Stopwatch(device), "prediction", data.description.labels
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            theirs, ours = (Path(folder) / f"{who}_{number}.h5" for who in ("baseline", "ours"))
            watch.time(name, "baseline", paper_way.predict, model, ImageDataset(data, stems), device, theirs)
            watch.time(name, "ours", save_predictions, model, ImageDataset(data, stems), device, args.batch_size,
                       MaskWriter(ours, labels, {}))
        store = MaskStore(ours, labels)
        with h5py.File(theirs) as file:
            changed = sum(int(np.count_nonzero(file[stem][()] != store.mask(stem))) for stem in stems)
    return watch.step(name, 0, changed)


def save_predictions(model: UNet, images: ImageDataset, device: torch.device, batch_size: int,
                     writer: MaskWriter) -> None:
    with writer:
        writer.write_all((stem, probabilities > 0.5) for stem, probabilities in
                         predict(model, images, device, batch_size))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
