"""Runs all stages in order, each on the model id of the one before, and tabulates the Dice.

    python -m scripts.run_pipeline --gpu_id 0
    python -m scripts.run_pipeline --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

The first line is the paper's setting. A rerun with the same arguments skips what is already there.

    python -m scripts.run_pipeline --dataset phantom --num_train_samples 5 --recommended medsam_lite --rounds 2

`--recommended` goes on, after the paper's way, with the recommended refinement and training: rows of their own tell
which helps more. `--rounds 2` puts the final U-Net in the initial one's place and labels and trains once more.

Reads   the images and annotations of the data set, SAM's weights
Writes  what the stages write, and in --results_dir: results.csv, results.json, pipeline.png,
        dice.csv and overlays of each row
"""  # noqa: E501 (a command to copy)
import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.evaluate import Evaluation, Summary
from scripts.study.methods import Setting, add_setting_arguments
from unet_training.hyper_params import RECOMMENDED_FINAL, RECOMMENDED_LOSS, FinalOptions, LossOptions, Schedule
from unet_training.models import TrainedModel, add_seed_argument
from unet_training.pseudo_labels import PseudoLabels, add_pseudo_label_argument
from unet_training.saved_masks import open_saved_masks, save_masks
from utils.cli import run_stage, stage_parser
from utils.errors import InputError
from utils.files import write_png
from utils.locks import check_writable
from utils.options import positive_int
from utils.overlay import overlay, side_by_side, stack, to_grey
from utils.paths import RESULTS
from utils.provenance import describe_run
from utils.records import write_record
from utils.tables import write_rows
from utils.tracking.experiment import tagged

Row = tuple[str, str, Summary]
NAMES = {"initial": "initial U-Net", "raw": "raw pseudo labels", "refined": "refined pseudo labels",
         "final": "final U-Net", "recommended": "recommended pseudo labels",
         "recommended_final": "recommended final U-Net"}
PICTURED = 2


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.run_pipeline", __doc__)
    add_seed_argument(parser)
    add_pseudo_label_argument(parser, default="sam")
    parser.add_argument("--rounds", type=positive_int, default=1,
                        help="how often pseudo labels are made and trained on, by the final U-Net of the round before")
    parser.add_argument("--recommended", nargs="?", const="", metavar="TYPE",
                        help="also refine and train in the recommended ways, with this type of SAM (nothing after the "
                             "argument: --sam_type)")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the table and the pictures")
    add_setting_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> list[Row]:
    """Returns the rows of the table."""
    setting = Setting.from_args(args)
    setting.check(final=True)
    ways = [Way("refined", "final", setting.labels[args.pseudo_label], setting.final_schedule, setting.final,
                setting.loss)]
    if args.recommended is not None:
        ways.append(recommend(setting, args.recommended))
    for way in ways:
        way.labels.check()
    check_folder(args.results_dir)
    with tagged(f"pipeline {args.results_dir.name}"):
        return run(setting, ways, args.rounds, args.results_dir)


@dataclass(frozen=True)
class Way:
    """How pseudo labels are made and trained on, and how the table calls them and the final network."""

    refined: str
    final: str
    labels: PseudoLabels
    schedule: Schedule
    options: FinalOptions
    loss: LossOptions


def recommend(setting: Setting, sam_type: str) -> Way:
    """The recommended way, with another type of SAM if one is named. Half of its batches are labeled images, so half of
    the epochs take as many steps as the other way's."""
    labels, schedule = setting.labels["recommended"], setting.final_schedule
    if sam_type:
        labels = replace(labels, sam=labels.sam.of_type(sam_type, setting.data))
    return Way("recommended", "recommended_final", labels, replace(schedule, epochs=(schedule.epochs + 1) // 2),
               RECOMMENDED_FINAL, RECOMMENDED_LOSS)


def check_folder(results_dir: Path) -> None:
    """Raises an InputError where results have no place."""
    if results_dir.is_file():
        raise InputError(f"{results_dir}: is a file; name a folder with --results_dir")
    check_writable(results_dir)


def run(setting: Setting, ways: Sequence[Way], rounds: int, results_dir: Path) -> list[Row]:
    """All stages, for each of the ways; returns the rows of the table."""
    raw, measurements = setting.labels["raw"], []
    headline(NAMES["initial"])
    initial = setting.train_initial()
    headline(NAMES["raw"])
    save_masks(raw, initial, setting.selection)
    measurements += [("initial", initial, raw, "test"), ("raw", initial, raw, "unlabeled")]
    prepared = []
    for way in ways:
        final = initial
        for number in range(rounds):
            of_round = f", round {number + 1}" if rounds > 1 else ""
            labeler = final
            headline(NAMES[way.refined] + of_round)
            labels = way.labels.prepare(labeler)
            save_masks(labels, labeler, setting.selection)
            headline(NAMES[way.final] + of_round)
            final = setting.train_final(labeler, labels.kind, labels=labels, schedule=way.schedule, options=way.options,
                                        loss=way.loss)
        prepared.append(labels)
        if labels.kind != raw.kind:
            measurements.append((way.refined, labeler, labels, "unlabeled"))
        measurements.append((way.final, final, raw, "test"))
    headline("evaluation")
    if not all(setting.data.has_ground_truth(stem) for stem in initial.unlabeled_stems(setting.selection)):
        measurements = [measured for measured in measurements if measured[-1] != "unlabeled"]
    evaluations = [Evaluation(model, masks, split, setting.selection, results_dir)
                   for _, model, masks, split in measurements]
    picture, is_done = results_dir / "pipeline.png", all(evaluation.is_done() for evaluation in evaluations)
    rows = [(name, evaluation.split, evaluation.run_if_missing())
            for (name, *_), evaluation in zip(measurements, evaluations, strict=True)]
    write_table(results_dir / "results.csv", rows)
    folders = [str(evaluation.folder.relative_to(results_dir)) for evaluation in evaluations]
    write_record(results_dir / "results.json", {"evaluations": folders, "run": describe_run()})
    if not (is_done and picture.exists()):
        write_png(picture, picture_pipeline(setting, initial, raw, prepared))
    print_table(setting, prepared, rows)
    print(f"table and overlays: {results_dir}")
    return rows


def headline(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


def write_table(path: Path, rows: list[Row]) -> None:
    """Columns what, split, dice_mean, dice_std (both in percent), n_images."""
    write_rows(path, [["what", "split", "dice_mean", "dice_std", "n_images"],
                      *([what, split, f"{s.mean:.4f}", f"{s.std:.4f}", s.count] for what, split, s in rows)])


def picture_pipeline(setting: Setting, initial: TrainedModel, raw: PseudoLabels, refined: Sequence[PseudoLabels]
                     ) -> np.ndarray:
    """The first unlabeled images with what the stages made of them (and the ground truth where it is known), RGB."""
    stores = {"initial U-Net": open_saved_masks(raw, initial)}
    stores |= {labels.title: open_saved_masks(labels, initial) for labels in refined if labels.kind != raw.kind}
    rows = []
    for stem in initial.unlabeled_stems(setting.selection)[:PICTURED]:
        grey = to_grey(initial.data.read_grey(stem))
        masks = {"ground truth": initial.data.mask(stem)} if initial.data.has_ground_truth(stem) else {}
        masks |= {title: store.mask(stem) for title, store in stores.items()}
        panels = [overlay(grey, mask) for mask in ((), *masks.values())]
        rows.append(side_by_side(panels, [stem[:24], *masks]))
    return stack(rows)


def print_table(setting: Setting, refined: Sequence[PseudoLabels], rows: list[Row]) -> None:
    print(f"\nData set {setting.data.description.name}, {setting.num_labeled} labeled images, seed {setting.seed}, "
          + " and ".join(labels.title for labels in refined))
    print(f"{'':26}{'images':>18}  Dice in %, mean ± std")
    for what, split, summary in rows:
        print(f"{NAMES[what]:26}{f'{summary.count} {split}':>18}  {summary.mean:6.2f} ± {summary.std:5.2f}")
    for notice in dict.fromkeys(labels.notice for labels in refined if labels.notice):
        print(f"refined masks: {notice}")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
