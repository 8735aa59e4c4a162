"""What the stages cost in time and disk for how many images on how many workers, from what an image costs here.

    python -m benchmarks.scale
    python -m benchmarks.scale --images 8 24 --check 0

Each stage runs on two small numbers of phantoms: what grows between them is an image's cost, the rest a run's own. The
model is checked by a run on `--check` images. A worker is one core of this processor, which it has to itself: what is
measured is processor time, on which neighbors act less. Work that the stages wait for, as on a slow disk, isn't in it.

Reads   the demo SAM or another one's weights (--sam_type, --sam_checkpoint)
Writes  a temporary folder (--work_dir says where; 3 MB an image with the demo SAM), and with --record a section of
        benchmarks/RESULTS.md
"""
import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch

from benchmarks.inputs import find_checkpoint
from benchmarks.measure import describe_machine, processor, record
from scripts import (
    generate_img_embeddings,
    make_phantoms,
    merge_masks,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
)
from segment_anything.registry import SAM_TYPES
from unet_training import training, training_on_pseudo_labels
from utils.cli import run_stage, stage_parser
from utils.datasets.description import load_description
from utils.options import non_negative, positive_int

N = ("--num_train_samples", "3")
SIZES, WORKERS = (10_086, 1_000_000), (1, 8, 64)
DRAWN = 12  # phantoms without labels; more images are links to them
SHARED = ("embeddings", "raw masks", "refined masks", "random walk", "final training, an epoch")  # among the workers
MERGE = "merging raw masks"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.scale", __doc__)
    parser.add_argument("--sam_type", choices=tuple(SAM_TYPES), default="demo", help="which SAM")
    parser.add_argument("--sam_checkpoint", type=Path, help="its weights (left out: where the stages look for them)")
    parser.add_argument("--images", type=positive_int, nargs=2, default=(8, 24), metavar=("FEW", "MORE"),
                        help="on how many images a stage's costs are measured")
    parser.add_argument("--check", type=non_negative(int), default=101,
                        help="on how many the model is checked; 0: none",
                        metavar="N")
    parser.add_argument("--base_width", type=positive_int, default=16, help="channels of the U-Net's first level")
    parser.add_argument("--work_dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--record", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    return parser


@dataclass(frozen=True)
class Measured:
    """A run of a stage: processor seconds, and the bytes of what it left."""

    seconds: float
    size: int


@dataclass(frozen=True)
class Cost:
    """Seconds of a run's own; seconds and bytes of an image."""

    own: float
    seconds: float
    size: float
    shared: bool

    @classmethod
    def between(cls, few: Measured, more: Measured, counts: Sequence[int], shared: bool) -> "Cost":
        """Of runs on two numbers of images."""
        seconds, size = ((getattr(more, name) - getattr(few, name)) / (counts[1] - counts[0])
                         for name in ("seconds", "size"))
        return cls(max(0.0, few.seconds - counts[0] * seconds), seconds, size, shared)

    def predict(self, images: int, workers: int = 1) -> float:
        """Seconds until the last of the workers has ended."""
        return self.own + self.seconds * -(-images // (workers if self.shared else 1))


def main(args: argparse.Namespace) -> dict[str, float]:
    """Returns measured over predicted seconds of each stage."""
    checkpoint, few_and_more = find_checkpoint(args.sam_type, args.sam_checkpoint), tuple(args.images)
    torch.set_num_threads(1)
    before = os.environ.get("SAM_BURDEN_RUNS")
    with tempfile.TemporaryDirectory(dir=args.work_dir) as name:
        os.environ["SAM_BURDEN_RUNS"] = str(Path(name, "runs"))
        try:
            stages = Stages(Path(name), args.base_width, ("--sam_type", args.sam_type, "--sam_checkpoint",
                                                          str(checkpoint)))
            few, more = (stages.run(count) for count in few_and_more)
            checked = stages.run(args.check) if args.check else {}
        finally:
            os.environ.pop("SAM_BURDEN_RUNS")
            os.environ.update({} if before is None else {"SAM_BURDEN_RUNS": before})
    costs = {stage: Cost.between(few[stage], more[stage], few_and_more, stage in SHARED) for stage in few}
    ratios = {stage: measured.seconds / costs[stage].predict(args.check) for stage, measured in checked.items()}
    text = "\n".join([describe_machine(), "", *describe_costs(costs), "", *describe_check(costs, checked, args.check),
                      "", *describe_scales(costs)])
    print(text)
    if args.record:
        title = f"scale --sam_type {args.sam_type} --base_width {args.base_width}"
        record(f"python -m benchmarks.{title} ({processor(torch.device('cpu'))})", f"\n{text}\n")
    return ratios


class Stages:
    """The stages' own commands on any number of phantoms, with a barely trained network."""

    def __init__(self, folder: Path, base_width: int, sam: Sequence[str]):
        self.folder, self.sam = folder, sam
        drawn = folder / "drawn"
        quietly(make_phantoms.main, make_phantoms.get_args_parser().parse_args(
            ["--data_dir", str(drawn), "--num_unlabeled", str(DRAWN)]))
        self.images = sorted((drawn / "phantom" / load_description("phantom").image_folder).glob("*.png"))
        self.model_id = self._call(training, drawn, *N, "--epochs", "1", "--base_width", str(base_width),
                                   "--n_last_channel", str(base_width), "--data_sample_per_epoch", "4",
                                   "--batch_size", "4")

    def run(self, count: int) -> dict[str, Measured]:
        """All of them, one after the other, on so many images."""
        data_dir = self._link(count)
        of_model = (*N, "--model_id", self.model_id, "--no-split500")
        made = {}

        def measure(stage: str, call: Callable[[], object], result: str) -> None:
            begin = time.process_time()
            call()
            size = sum(each.stat().st_size for each in data_dir.rglob(result) if not each.is_symlink())
            made[stage] = Measured(time.process_time() - begin, size)

        def save(module: object, *arguments: str) -> Callable[[], object]:
            return lambda: self._call(module, data_dir, *of_model, *arguments)

        measure("embeddings", lambda: self._call(generate_img_embeddings, data_dir, *N, "--no-split500", *self.sam),
                "sam_embeddings/*/*.h5")
        measure("raw masks", save(save_segmentations), "raw.h5")
        measure("refined masks", save(save_refined_segmentations, *self.sam), "sam_*.h5")
        measure("random walk", save(save_random_walk_segmentations, "--random_walk", "active"), "random_walk*.h5")
        measure("final training, an epoch", save(training_on_pseudo_labels, "--pseudo_label", "raw", "--epochs", "1",
                                                 "--batch_size", "4"), "none")
        raw, = data_dir.rglob("raw.h5")
        raw.unlink()
        for shard in ("1/2", "2/2"):
            save(save_segmentations, "--shard", shard)()
        measure(MERGE, lambda: quietly(merge_masks.main, merge_masks.get_args_parser().parse_args([str(raw)])), "none")
        shutil.rmtree(data_dir)
        return made

    def _link(self, count: int) -> Path:
        """A data folder with the labeled phantoms and so many others."""
        data_dir = self.folder / f"of_{count}"
        images = data_dir / "phantom" / load_description("phantom").image_folder
        images.mkdir(parents=True)
        labeled, others = self.images[:-DRAWN], self.images[-DRAWN:]
        for image in labeled:
            (images / image.name).symlink_to(image)
        for number in range(count):
            (images / f"copy_{number:07}.png").symlink_to(others[number % DRAWN])
        return data_dir

    def _call(self, module, data_dir: Path, *arguments: str) -> object:
        given = ["--dataset", "phantom", "--data_dir", str(data_dir), *arguments]
        return quietly(module.main, module.get_args_parser().parse_args(given))


def quietly(function: Callable, *arguments: object) -> object:
    """Calls it without what it prints."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return function(*arguments)


def describe_costs(costs: Mapping[str, Cost]) -> list[str]:
    return ["| stage | ms an image | kB an image | s a run |", "|---|---:|---:|---:|",
            *(f"| {stage} | {1e3 * cost.seconds:.0f} | {cost.size / 1e3:.1f} | {cost.own:.1f} |"
              for stage, cost in costs.items())]


def describe_check(costs: Mapping[str, Cost], checked: Mapping[str, Measured], count: int) -> list[str]:
    """Predicted beside measured, of all that was run."""
    if not checked:
        return []
    rows = [f"| {stage} | {costs[stage].predict(count):.1f} | {measured.seconds:.1f} | "
            f"{measured.seconds / costs[stage].predict(count):.2f} |" for stage, measured in checked.items()]
    total = sum(cost.predict(count) for cost in costs.values())
    spent = sum(measured.seconds for measured in checked.values())
    return [f"Checked by a run on {count} images, in seconds of one core:", "",
            "| stage | predicted | measured | measured / predicted |", "|---|---:|---:|---:|", *rows,
            f"| all | {total:.1f} | {spent:.1f} | {spent / total:.2f} |"]


def describe_scales(costs: Mapping[str, Cost]) -> list[str]:
    """Predicted time on each number of workers, and disk, of each number of images."""
    lines = []
    for images in SIZES:
        head = " | ".join(f"{workers} worker{'s' * (workers > 1)}" for workers in WORKERS)
        lines += [f"{images:,} images:", "", f"| stage | {head} | disk |", "|---|" + "---:|" * (len(WORKERS) + 1)]
        for stage, cost in costs.items():
            times = " | ".join(tell_time(cost.predict(images, workers)) for workers in WORKERS)
            lines.append(f"| {stage} | {times} | {tell_size(cost.size * images)} |")
        times = (sum(cost.predict(images, workers) for cost in costs.values()) for workers in WORKERS)
        size = sum(cost.size for cost in costs.values()) * images
        lines += [f"| all | {' | '.join(map(tell_time, times))} | {tell_size(size)} |", ""]
    return lines[:-1]


def tell_time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def tell_size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB" if count else ""


if __name__ == "__main__":
    run_stage(main, get_args_parser())
