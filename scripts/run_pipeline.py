"""Runs all stages in order, each on the model id of the one before, and tabulates the Dice.

    python -m scripts.run_pipeline --gpu_id 0
    python -m scripts.run_pipeline --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

The first line is the paper's setting. A rerun with the same arguments skips what is already there.

    python -m scripts.run_pipeline --dataset NAME --preset quick
    python -m scripts.run_pipeline --dataset NAME --preset recommended

First masks of your own images within minutes, and then the way that measured best on real radiographs.

    python -m scripts.run_pipeline --dataset phantom --num_train_samples 5 --recommended medsam_lite --rounds 2

`--recommended` goes on, after the paper's way, with the recommended refinement and training: rows of their own tell
which helps more. `--rounds 2` puts the final U-Net in the initial one's place and labels and trains once more.
`--ensemble 3` trains three initial U-Nets, whose mean labels the images of the first round.

Reads   the images and annotations of the data set, SAM's weights
Writes  what the stages write, and in --results_dir: report.html to look at, table.csv, masks/ and pipeline.png (the
        worst, median and best images, and the first ones, with their masks), results.json (what the table came from),
        refinement_check.csv (what the refinement makes of the labeled validation images, measured before anything is
        trained on it), and of each row, in a folder of its model's id, what scripts.evaluate writes
"""  # noqa: E501 (a command to copy)
import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.evaluate import Evaluation, Summary
from scripts.pipeline_steps import Steps, run_by_agents
from scripts.report import ReportOptions, write_report
from scripts.report_page.places import Places
from scripts.study.methods import Setting, Stages, add_setting_arguments, headline
from scripts.study.refinement_check import check_refinement, describe_drawn, write_checks
from segment_anything.embeddings import embedding_path
from segment_anything.options import SamOptions
from unet_training.hyper_params import (
    RECOMMENDED_ENSEMBLE,
    RECOMMENDED_FINAL,
    RECOMMENDED_LOSS,
    FinalOptions,
    LossOptions,
    Sampling,
    Schedule,
)
from unet_training.models import DataOptions, TrainedModel, add_seed_argument
from unet_training.pseudo_labels import PseudoLabels, Recommended, SamRefined, add_pseudo_label_argument
from unet_training.saved_masks import open_saved_masks
from utils.cli import run_stage, stage_parser
from utils.errors import InputError
from utils.files import write_png
from utils.locks import check_writable
from utils.options import Preset, add_options, argument_group, positive_int
from utils.overlay import add_class_legend, overlay, shrink_to_panel, side_by_side, stack, to_grey
from utils.paths import RESULTS
from utils.provenance import describe_run
from utils.records import find_record, write_record
from utils.tables import write_rows
from utils.tracking.experiment import tagged
from utils.tracking.queued_steps import check_queue

Row = tuple[str, str, Summary]
NAMES = {"initial": "initial U-Net", "raw": "raw pseudo labels", "refined": "refined pseudo labels",
         "final": "final U-Net", "recommended": "recommended pseudo labels",
         "recommended_final": "recommended final U-Net"}
PICTURED = 2
PRESETS = {"paper": {}, "recommended": {"refinement": "recommended", "training": "recommended", "rounds": 2,
                                         "ensemble": RECOMMENDED_ENSEMBLE}}
PRESETS["quick"] = {**PRESETS["recommended"], "rounds": 1, "ensemble": 1, "sam_type": "medsam_lite", "input_side": 192,
                    "base_width": 8, "n_last_channel": 8, "epochs": 40, "final_epochs": 20, "batch_size": 4,
                    "lr": 4e-3}  # on two CPU cores, without a download


@dataclass(frozen=True)
class Way:
    """How pseudo labels are made and trained on, and how the table calls them and the final network.

    Attributes:
        ensemble: how many initial networks label in the first round
    """

    refined: str
    final: str
    labels: PseudoLabels
    schedule: Schedule
    options: FinalOptions
    loss: LossOptions
    rounds: int = 1
    ensemble: int = 1


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.run_pipeline", __doc__)
    add_options(parser, DataOptions, only=("dataset",))
    parser.add_argument("--preset", action=Preset, values=PRESETS, default="paper", help=describe_presets(PRESETS))
    add_options(parser, Sampling, only=("num_train_samples",))
    add_options(parser, SamOptions, only=("sam_type",))
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the table and the pictures")
    group = argument_group(parser, "pipeline")
    add_pseudo_label_argument(group, default="sam")
    group.add_argument("--rounds", type=positive_int, default=1,
                       help="how often pseudo labels are made and trained on, by the final U-Net of the round before")
    group.add_argument("--ensemble", type=positive_int, default=1, metavar="N",
                       help="initial U-Nets that label the images of the first round together, each from another seed; "
                            "the final one starts from the first of them")
    group.add_argument("--recommended", nargs="?", const="", metavar="TYPE",
                       help="also refine and train in the recommended ways, with this type of SAM (nothing after the "
                            "argument: --sam_type)")
    group.add_argument("--queue", metavar="NAME",
                       help="ClearML's agents run the stages, which they take from this queue; the check of the "
                            "refinement, the table and the report are made here")
    add_seed_argument(group)
    add_setting_arguments(parser)
    return parser


def describe_presets(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """For the help."""
    options = {name: " ".join(f"--{option} {value}" for option, value in values.items())
               for name, values in presets.items()}
    return ("; ".join(f"{name}: {values or 'all defaults'}" for name, values in options.items())
            + "; each as far as it isn't given")


def main(args: argparse.Namespace) -> list[Row]:
    """Returns the rows of the table."""
    setting = Setting.from_args(args)
    first = Way("refined", "final", setting.labels[args.pseudo_label], setting.final_schedule, setting.final,
                setting.loss, args.rounds, args.ensemble)
    ways = [first] if args.recommended is None else [first, recommend(setting, first, args.recommended)]
    setting.check([(way.labels, way.options) for way in ways])
    for way in ways:
        way.labels.check()
    check_folder(args.results_dir)
    if args.queue:
        check_queue(args.queue)
    tell_costs(setting, ways)
    tag = f"pipeline {args.results_dir.name}"
    if args.queue:
        run_by_agents(plan(setting, ways, args.results_dir), args.queue, tag)
    with tagged(tag):
        return run(setting, ways, args.results_dir)


def recommend(setting: Setting, other: Way, sam_type: str) -> Way:
    """The recommended way, with another type of SAM if one is named. Half of its batches are labeled images, so half of
    the epochs take as many steps as the other way's, unless that one mixes, too."""
    labels, schedule = setting.labels["recommended"], other.schedule
    if not other.options.mixed:
        schedule = replace(schedule, epochs=(schedule.epochs + 1) // 2)
    if sam_type:
        labels = replace(labels, sam=labels.sam.of_type(sam_type, setting.data))
    return replace(other, refined="recommended", final="recommended_final", labels=labels, schedule=schedule,
                   options=RECOMMENDED_FINAL, loss=RECOMMENDED_LOSS)


def tell_costs(setting: Setting, ways: Sequence[Way]) -> None:
    """Says what will be stored of the images before they are embedded."""
    unlabeled = setting.selection.stems(setting.data, setting.num_labeled)
    stems = {*unlabeled, *setting.data.stems("val")}
    print(f"{setting.num_labeled} labeled, {len(setting.data.stems('val'))} validation, {len(unlabeled)} unlabeled "
          f"images; input {' x '.join(map(str, setting.data.description.input_size))} (H x W)")
    for sam in dict.fromkeys(way.labels.sam for way in ways if isinstance(way.labels, SamRefined | Recommended)):
        missing = [stem for stem in stems if not embedding_path(sam.folder(setting.data), stem).is_file()]
        if missing and sam.stored:
            size = len(missing) * sam.embedding_bytes / 1e6
            print(f"SAM {sam.type_name} will look at {len(missing)} images once and keep {size:,.0f} MB of them in "
                  f"{sam.folder(setting.data)} (--embeddings float16: half of it; none: nothing)")


def check_folder(results_dir: Path) -> None:
    """Raises an InputError where results have no place."""
    if results_dir.is_file():
        raise InputError(f"{results_dir}: is a file; name a folder with --results_dir")
    check_writable(results_dir)


def plan(setting: Setting, ways: Sequence[Way], results_dir: Path) -> Steps:
    """The stages whose results aren't there yet; `run` finds what they will have made."""
    steps = Steps(setting)
    evaluations = walk(steps, ways, results_dir)
    for evaluation in evaluations.values():
        if evaluation.split != "unlabeled" or setting.can_measure_unlabeled():
            steps.measure(evaluation)
    return steps


def run(setting: Setting, ways: Sequence[Way], results_dir: Path) -> list[Row]:
    """All stages, for each of the ways; returns the rows of the table."""
    evaluations = walk(Stages(setting), ways, results_dir)
    labeled = [evaluations.get(way.refined, evaluations["raw"]) for way in ways]
    headline("evaluation")
    recorded = [{"what": name, "title": NAMES[name], "split": each.split, "model_id": each.model.id,
                 "masks": each.labels.variant, "notice": each.labels.notice} for name, each in evaluations.items()]
    if not setting.can_measure_unlabeled():
        evaluations = {name: each for name, each in evaluations.items() if each.split != "unlabeled"}
    record, picture = results_dir / "results.json", results_dir / "pipeline.png"
    shown = find_record(record, dict[str, Any]) or {}  # which models and masks the results that are there came from
    is_shown = (all(each.is_done() for each in evaluations.values()) and shown.get("rows") == recorded
                and picture.exists() and (results_dir / "report.html").exists())
    rows = [(name, each.split, each.run_if_missing()) for name, each in evaluations.items()]
    write_table(results_dir / "table.csv", rows)
    folders = [str(each.folder.relative_to(results_dir)) for each in evaluations.values()]
    places = Places(setting.device, setting.data.data_dir, setting.data.derived_dir)
    write_record(record, {"evaluations": folders, "rows": recorded, "run": describe_run(),
                          "data": {"dataset": setting.data.description.name, **places.recorded()}})
    if not is_shown:
        write_png(picture, picture_pipeline(setting, evaluations["initial"].model, labeled))
        headline("report")
        write_report(results_dir, ReportOptions(), places, masks_dir=results_dir / "masks")
    print_table(setting, [each.labels for each in labeled], rows)
    print(f"report, table and masks: {results_dir}")
    return rows


def walk(stages: Stages, ways: Sequence[Way], results_dir: Path) -> dict[str, Evaluation]:
    """All stages but the evaluations; returns what is to be measured, by the names of the rows."""
    setting, raw = stages.setting, stages.setting.labels["raw"]
    stages.begin(NAMES["initial"])
    initial = stages.train(setting.initial_training())
    stages.begin(NAMES["raw"])
    stages.save_masks(raw, initial)
    checks, measured = [], [("initial", initial, raw, "test"), ("raw", initial, raw, "unlabeled")]
    ensembles = {1: initial}  # by their number of networks, as ways share them
    for way in ways:
        if way.ensemble not in ensembles:
            stages.begin(f"ensemble of {way.ensemble} initial U-Nets")
            ensembles[way.ensemble] = stages.join_ensemble(initial, way.ensemble)
        final = ensembles[way.ensemble]
        for number in range(way.rounds):
            of_round = f", round {number + 1}" if way.rounds > 1 else ""
            labeler = final
            stages.begin(NAMES[way.refined] + of_round)
            labels = stages.prepare(way.labels, labeler)
            if stages.run_here and labels.kind != raw.kind:
                checks.append(check_refinement(way.refined, number + 1, labels, labeler, setting.selection,
                                               results_dir))
                checks[-1].print()
                write_checks(results_dir / "refinement_check.csv", checks)
            stages.save_masks(labels, labeler)
            if stages.run_here and (drawn := describe_drawn(labels, labeler,
                                                            labeler.unlabeled_stems(setting.selection))):
                print(drawn)
            stages.begin(NAMES[way.final] + of_round)
            final = stages.train(setting.final_training(labeler, labels, schedule=way.schedule, options=way.options,
                                                        loss=way.loss))
        if labels.kind != raw.kind:
            measured.append((way.refined, labeler, labels, "unlabeled"))
        measured.append((way.final, final, raw, "test"))
    return {name: Evaluation(model, labels, split, setting.selection, results_dir)
            for name, model, labels, split in measured}


def write_table(path: Path, rows: list[Row]) -> None:
    """Columns what, split, dice_mean, dice_std (both in percent), n_images, and false_positives: masks of labels that
    their image doesn't show, which the Dice doesn't count."""
    write_rows(path, [["what", "split", "dice_mean", "dice_std", "n_images", "false_positives"],
                      *([what, split, f"{s.mean:.4f}", f"{s.std:.4f}", s.count, s.false_positives]
                        for what, split, s in rows)])


def picture_pipeline(setting: Setting, initial: TrainedModel, labeled: Sequence[Evaluation]) -> np.ndarray:
    """The first unlabeled images with what the stages made of them (and the ground truth where it is known), RGB."""
    stores = {"initial U-Net": open_saved_masks(setting.labels["raw"], initial)}
    stores |= {each.labels.title: open_saved_masks(each.labels, each.model) for each in labeled
               if each.labels.kind != "raw"}
    rows = []
    for stem in initial.unlabeled_stems(setting.selection)[:PICTURED]:
        grey = shrink_to_panel(to_grey(initial.data.read_grey(stem)))
        masks = {"ground truth": initial.data.mask(stem)} if initial.data.has_ground_truth(stem) else {}
        masks |= {title: store.mask(stem) for title, store in stores.items()}
        panels = [overlay(grey, mask) for mask in ((), *masks.values())]
        rows.append(side_by_side(panels, [stem, *masks]))
    return add_class_legend(stack(rows), initial.data.description.labels)


def print_table(setting: Setting, refined: Sequence[PseudoLabels], rows: list[Row]) -> None:
    print(f"\nData set {setting.data.description.name}, {setting.num_labeled} labeled images, seed {setting.seed}, "
          + " and ".join(labels.title for labels in refined))
    print(f"{'':26}{'images':>18}  Dice in %, mean ± std")
    for what, split, summary in rows:
        spread = f" ± {summary.std:5.2f}" if summary.count > 1 else ""
        print(f"{NAMES[what]:26}{f'{summary.count} {split}':>18}  {summary.mean:6.2f}{spread}")
    if false := [f"{NAMES[what]} {summary.false_positives}" for what, _, summary in rows if summary.false_positives]:
        print(f"masks of labels that their image doesn't show, which the Dice doesn't count: {', '.join(false)}")
    for notice in dict.fromkeys(labels.notice for labels in refined if labels.notice):
        print(f"refined masks: {notice}")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
