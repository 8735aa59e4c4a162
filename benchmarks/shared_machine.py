"""Times a machine without a GPU that has other things to do: one thread against ours, idle and with one core busy.

    python -m benchmarks.shared_machine
    python -m benchmarks.shared_machine --sam_type vit_t --sam_checkpoint mobile_sam.pt --record

The baseline is one thread that nobody disturbs. Idle, ours should be 1.7 times as fast on two cores; beside a process
that keeps one of them busy (started here), in its slowest round, never slower than 1.5 times the baseline. Where the
weights of the SAM type are missing they are random, which takes as long. Linux only.

Reads   --image_folder (left out: benchmarks/inputs.py says which); annotations_train.xml
Writes  nothing, or the table: --json FILE, and --record into benchmarks/RESULTS.md
"""
import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.encoder import RANDOM, random_sam
from benchmarks.inputs import add_image_arguments, list_images, predictions
from benchmarks.measure import ReportOptions, Step, report
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embeddings
from segment_anything.fast.image_encoder import accelerate
from segment_anything.refinement.refine import RefinementOptions, refine_all
from segment_anything.registry import SAM_TYPES, default_checkpoint, get_sam_type, load_sam
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from unet_training.epoch import bce_loss, train_epoch
from unet_training.networks.u_net import UNet
from unet_training.prediction import predict
from utils.cli import run_stage, stage_parser
from utils.options import add_options, options_from, positive_int
from utils.paths import DATA

STAGES = "refinement", "embedding", "prediction", "training step"
MASKS = "refinement", "prediction"  # whose pixels are counted
CPU = torch.device("cpu")
CORES, IMAGES = 32, 10086  # of the machine that is extrapolated to; all of GRAZPEDWRI-DX that are refined
LONGEST = 3600  # seconds that a neighbor lives, whatever happens to this process
NEIGHBOR = """
import os, sys, time
core, parent, seconds = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
print(flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end and os.getppid() == parent:
    pass
"""


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.shared_machine", __doc__)
    parser.add_argument("--sam_type", choices=tuple(SAM_TYPES), default="demo", help="which SAM")
    parser.add_argument("--sam_checkpoint", type=Path, help="its weights (left out: where the stages look for them)")
    add_image_arguments(parser)
    parser.set_defaults(images=8)
    parser.add_argument("--rounds", type=positive_int, default=3, help="how often each is timed, and once to warm up")
    parser.add_argument("--base_width", type=positive_int, default=64, help="channels of the U-Net's first level")
    parser.add_argument("--batch_size", type=positive_int, default=4, help="images of a training step")
    parser.add_argument("--input_size", type=positive_int, nargs=2, default=(384, 224), metavar=("H", "W"),
                        help="of the U-Net")
    add_options(parser, ReportOptions)
    return parser


def main(args: argparse.Namespace) -> list[Step]:
    """Returns the lines of the table."""
    paths, steps, needed = list_images(args.image_folder, args.images), [], []
    work = Work(args.sam_type, args.sam_checkpoint, paths, args.base_width, args.input_size, args.batch_size)
    cores = torch.get_num_threads()
    for stage in STAGES:
        count = args.batch_size if stage == "training step" else len(paths)
        one, idle, busy, difference, changed = measure(getattr(work, stage.replace(" ", "_")), args.rounds, cores)
        for situation, ours in (("idle", idle), ("one core busy", busy)):
            steps.append(Step(f"{stage}, {situation}", 1e3 * one / count, 1e3 * ours / count, difference,
                              changed if stage in MASKS else 0))
        needed.append(f"{stage} {idle / count * cores / CORES * IMAGES / 60:.1f}")
    size = "x".join(map(str, args.input_size))
    report(options_from(ReportOptions, args), f"shared_machine --sam_type {args.sam_type}", CPU,
           f"{len(paths)} images ({paths[0].parents[1].name}), {args.rounds} rounds after one to warm up; a U-Net of "
           f"width {args.base_width} at {size}; times per image, the baseline is one thread; {CORES} cores like these "
           f"without a GPU would need for {IMAGES:,} images, extrapolated linearly from images per second per core, in "
           f"minutes: {', '.join(needed[:-1])}", steps)
    return steps


class Work:
    """The stages' own functions on a few images; each returns its result as one array."""

    def __init__(self, sam_type: str, checkpoint: Path | None, paths: list[Path], base_width: int,
                 input_size: tuple[int, int], batch_size: int):
        checkpoint = checkpoint or default_checkpoint(sam_type, DATA)
        known = checkpoint.is_file()
        self.sam = load_sam(sam_type, checkpoint) if known else random_sam(sam_type)
        self.identity = identify(checkpoint) if known else RANDOM
        accelerate(self.sam.image_encoder)
        self.preprocessing, self.paths = get_sam_type(sam_type).preprocessing, paths
        modules = {name: module for name, module in self.sam.named_children() if name != "image_encoder"}
        self.decoder = StoredEmbeddingDecoder(modules, get_sam_type(sam_type).decoder, self.identity)
        answers = [answer for answer, _ in zip(predictions(), paths, strict=False)]
        self.predicted = list(zip(answers, self._embed(), strict=True))
        torch.manual_seed(0)
        classes = len(answers[0])
        self.network = UNet(classes, base_width, base_width).eval()
        self.images = [(torch.rand(1, *input_size), str(path)) for path in paths]
        self.batch = torch.rand(batch_size, 1, *input_size), torch.rand(batch_size, classes, *input_size) > 0.5

    def _embed(self):
        return compute_embeddings(self.sam, self.paths, self.preprocessing, self.identity)

    def refinement(self) -> np.ndarray:
        return np.stack([refined.mask for refined in refine_all(self.predicted, self.decoder, RefinementOptions())])

    def embedding(self) -> np.ndarray:
        return np.stack([embedding.features["image"].numpy() for embedding in self._embed()])

    def prediction(self) -> np.ndarray:
        return np.stack([masks for _, masks in predict(self.network, self.images, CPU, 1)])

    def training_step(self) -> np.ndarray:
        model = copy.deepcopy(self.network)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
        torch.manual_seed(1)
        train_epoch(model, [self.batch], bce_loss([1] * self.batch[1].shape[1], CPU), optimizer, CPU, 0.03)
        return np.concatenate([weights.detach().numpy().ravel() for weights in model.parameters()])


class Measured(NamedTuple):
    """Seconds of one thread, of ours, and of ours at its slowest beside a busy neighbor; how much the results of the
    former two differ at most, and how many of their values lie on different sides of 0.5."""

    one: float
    idle: float
    busy: float
    difference: float
    changed: int


def measure(compute: Callable[[], np.ndarray], rounds: int, cores: int) -> Measured:
    """Times the three of them in turn."""
    results = [run(compute, threads)[1].astype(np.float32) for threads in (1, cores)]
    one, idle, busy = [], [], []
    for _ in range(rounds):
        one.append(run(compute, 1)[0])
        idle.append(run(compute, cores)[0])
        with busy_neighbor():
            busy.append(run(compute, cores)[0])
    return Measured(median(one), median(idle), max(busy), float(np.abs(np.subtract(*results)).max()),
                    int(np.count_nonzero((results[0] > 0.5) != (results[1] > 0.5))))


def run(compute: Callable[[], np.ndarray], threads: int) -> tuple[float, np.ndarray]:
    """Seconds, and the result, of so many threads or workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter()
        result = compute()
        return time.perf_counter() - start, result
    finally:
        torch.set_num_threads(before)


@contextmanager
def busy_neighbor() -> Iterator[subprocess.Popen]:
    """Within it another process spins on one of this one's cores."""
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", NEIGHBOR, *map(str, (core, os.getpid(), LONGEST))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as neighbor:
        try:
            neighbor.stdout.readline()  # it has begun
            yield neighbor
        finally:
            neighbor.kill()


if __name__ == "__main__":
    run_stage(main, get_args_parser())
