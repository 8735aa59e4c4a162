"""Trains and tests every method at every number of labeled images and seed.

    python -m scripts.run_study --gpu_id 0 --num_train_samples 1 5 10 15 20 25 30 35 43
    python -m scripts.run_study --dataset phantom --num_train_samples 5 20 --methods initial sam mean_teacher --epochs 24 --batch_size 4

    python -m scripts.run_study --dataset NAME --preset quick --methods initial sam recommended
    python -m scripts.run_study --num_train_samples 5 20 43 --seeds 1 2 3 --queue gpu

A rerun only does what is missing, and results of other n, seeds and methods are added to those that are there. All other
arguments are those of scripts.run_pipeline, for every method alike.

    initial                the initial U-Net
    u_net_sam, u_net_medsam, u_net_random_walk
                           its masks of the test images, refined, without a second training
    raw, sam, random_walk  the final U-Net on raw pseudo labels, or on those refined by SAM or a random walk
    medsam                 as sam, with MedSAM's weights and the box alone
    sam_finetuned          as sam, after scripts.finetune_sam; one pass or a mask as a prompt suit it better
    recommended            as sam, refined and trained in the recommended ways (--refinement, --training)
    recommended_twice      once more, the final U-Net in the place of the initial one
    recommended_ensemble   two rounds, the first one by three initial U-Nets together
    mixed                  as sam, labeled images filling half of every batch, fine-tuned from the initial U-Net
    mean_teacher           from the initial U-Net on
    reliable_mean_teacher  as mean_teacher; masks of that mean teacher on which SAM agrees enter as labels
    lraspp_on_sam          LR-ASPP on SAM's frozen encoder, trained on the labeled images, without augmentation so that
                           the encoder sees each of them once
    fully_supervised       the U-Net on all labeled training images, whatever n is
    nnunet                 the final U-Net on nnU-Net's masks (needs requirements_nnunet.txt)
    nnunet_alone           nnU-Net's own masks of the test images
    nnunet_bce             the same of an nnU-Net of independent sigmoids, as the paper's

Reads   the images and annotations of the data set, SAM's weights
Writes  what the stages write, and in --results_dir: study.csv (a row per method, n, seed, test image and class that it
        shows, in percent), pseudo_labels.csv (the same of the pseudo labels of unlabeled images, where their ground
        truth is known, with SAM's estimate) and manifest.json (the models that each number came from); see scripts.plot_results
"""  # noqa: E501 (a command to copy)
import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.evaluate import Evaluation
from scripts.pipeline_steps import Steps, run_by_agents
from scripts.run_pipeline import PRESETS, check_folder, describe_presets
from scripts.study.methods import METHODS, Measured, Setting, Stages, add_setting_arguments
from unet_training.models import TrainedModel
from unet_training.training_stage import data_parameters
from utils.cli import run_stage, stage_parser
from utils.errors import InputError
from utils.locks import exclusive
from utils.options import Preset, plain_value, positive_float
from utils.paths import RESULTS
from utils.provenance import describe_run
from utils.records import read_record, write_record
from utils.tables import read_rows, write_rows
from utils.tracking.experiment import tagged
from utils.tracking.queued_steps import check_queue

MEASURES = ("dice", "surface_dice", "estimated_dice")
FREE = ("num_train_samples", "seeds", "methods", "results_dir", "data_dir", "derived_dir", "gpu_id", "num_workers",
        "infer_batch_size", "surface_tolerance", "threads", "record_diff",
        "upload_masks", "preset", "queue")  # arguments that results don't depend on
OF_METHODS = ("refinement", "rounds", "ensemble")  # options in which methods differ
STUDY_PRESETS = {name: {option: value for option, value in values.items() if option not in OF_METHODS}
                 for name, values in PRESETS.items()}
COLUMNS = ("dataset", "method", "n", "seed", "image", "class", *MEASURES, "model_id")


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.run_study", __doc__)
    parser.add_argument("--preset", action=Preset, values=STUDY_PRESETS, default="paper",
                        help=f"for all methods alike, each of which has its own refinement and rounds: "
                             f"{describe_presets(STUDY_PRESETS)}")
    parser.add_argument("--num_train_samples", nargs="+", type=int, default=[5, 20, 43],
                        help="numbers of labeled images; -1 for all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds of all random numbers")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="what to compare",
                        default=[name for name, method in METHODS.items() if not method.optional])
    parser.add_argument("--surface_tolerance", type=positive_float, default=2, metavar="PIXELS",
                        help="how far outlines may be apart in the surface Dice")
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--queue", metavar="NAME",
                        help="ClearML's agents run the stages, which they take from this queue; the tables are written "
                             "here")
    add_setting_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the table's file."""
    if args.refinement != "paper":  # else rows of the paper's methods would hold other masks
        raise InputError(f"--refinement {args.refinement}: each method has its own refinement; leave it out, and name "
                         "`recommended` in --methods")
    settings = [Setting.from_args(args, num_train_samples=n, seed=seed)
                for n in args.num_train_samples for seed in args.seeds]
    methods = [METHODS[name] for name in args.methods]
    for setting in settings:
        setting.check([final for method in methods for final in method.finals(setting)],
                      any(method.unlabeled for method in methods))
    for kind in dict.fromkeys(kind for method in methods for kind in method.kinds):
        settings[0].labels[kind].check()
    for method in methods:
        if method.check:
            method.check(settings[0])
    check_folder(args.results_dir)
    study = Study(args.results_dir, describe_arguments(vars(args)), settings[0].labels["sam"].sam.type_name)
    study.check()
    tag = f"study {args.results_dir.name}"
    if args.queue:
        check_queue(args.queue)
        run_by_agents(plan(settings, args.methods, args.results_dir, args.surface_tolerance), args.queue, tag)
    with tagged(tag):
        for setting in settings:
            for result in compare(setting, args.methods, args.results_dir, args.surface_tolerance):
                study.add(result)
    if notice := settings[0].labels["sam"].notice:
        print(f"refined masks: {notice}")
    print(f"table: {study.table}")
    return study.table


def describe_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a manifest keeps them."""
    return {name: plain_value(value) for name, value in values.items() if name != "given"}


@dataclass(frozen=True)
class Study:
    """What was measured so far, by this run and earlier ones: tables and manifest in `folder`, written as it goes.

    `arguments` are this run's; what is in the folder was made with the same ones, but for `FREE`.
    """

    folder: Path
    arguments: dict[str, Any]
    sam_type: str

    @property
    def table(self) -> Path:
        return self.folder / "study.csv"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def check(self) -> None:
        """Raises an InputError where the folder holds results of other options, which no table may mix."""
        before = self._read()["arguments"]
        differing = [name for name, value in self.arguments.items()
                     if name not in FREE and name in before and before[name] != value]
        if differing:
            name = differing[0]
            raise InputError(f"{self.manifest}: its results were made with --{name} {before[name]}, not "
                             f"{self.arguments[name]}; name another --results_dir, or move this folder away")

    def add(self, result: "Result") -> None:
        """In the place of what there was of the same method, n and seed, or of other test images."""
        with exclusive(self.manifest):
            kept = [record for record in self._read()["results"] if _key(record) != _key(result.record)
                    and record.get("test_sha256") == result.record["test_sha256"]]
            for name, rows in (("study.csv", result.rows), ("pseudo_labels.csv", result.pseudo_label_rows)):
                write_rows(self.folder / name, [COLUMNS, *self._read_rows(name, set(map(_key, kept))), *rows])
            write_record(self.manifest, {"arguments": self.arguments, "sam_type": self.sam_type,
                                         "results": [*kept, {**result.record, "run": describe_run()}]})

    def _read(self) -> dict[str, Any]:
        empty = {"arguments": {}, "results": []}
        return {**empty, **read_record(self.manifest, dict[str, Any])} if self.manifest.is_file() else empty

    def _read_rows(self, name: str, keys: set[tuple[str, ...]]) -> list[list[str]]:
        path = self.folder / name
        rows = read_rows(path, COLUMNS) if path.is_file() else []
        return [[row[column] for column in COLUMNS] for row in rows if _key(row) in keys]


def _key(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[name]) for name in ("method", "n", "seed"))


@dataclass(frozen=True)
class Result:
    """Of one method: rows of both tables, and what they came from."""

    rows: list[tuple]
    pseudo_label_rows: list[tuple]
    record: dict[str, Any]


def plan(settings: Sequence[Setting], methods: Sequence[str], results_dir: Path, tolerance: float) -> Steps:
    """The stages of all settings whose results aren't there yet; `compare` finds what they will have made."""
    steps = Steps(settings[0])
    for setting in settings:
        own = replace(steps, setting=setting, ending=f", seed {setting.seed}")
        for *_, evaluations in walk(own, methods, results_dir, tolerance):
            for evaluation in evaluations.values():
                own.measure(evaluation)
    return steps


def compare(setting: Setting, methods: Sequence[str], results_dir: Path, tolerance: float) -> Iterator[Result]:
    """Trains and measures what is missing, one method after the other."""
    test_images = data_parameters(setting.data, setting.data.stems("test"))["data_sha256"]
    for name, initial, measured, evaluations in walk(Stages(setting), methods, results_dir, tolerance):
        key = setting.data.description.name, name, setting.num_labeled, setting.seed
        rows = {split: [(*key, *row, evaluation.model.id) for row in measure_once(evaluation)]
                for split, evaluation in evaluations.items()}
        record = {"method": name, "n": setting.num_labeled, "seed": setting.seed, "initial_model_id": initial.id,
                  "model_id": measured.model.id, "masks": measured.kind, "test_sha256": test_images}
        if measured.trained_on:
            record |= {"labeler_id": measured.labeler.id, "pseudo_labels": measured.trained_on.variant}
        yield Result(rows["test"], rows.get("unlabeled", []), record)


def walk(stages: Stages, methods: Sequence[str], results_dir: Path, tolerance: float
         ) -> Iterator[tuple[str, TrainedModel, Measured, dict[str, Evaluation]]]:
    """All stages but the evaluations, one method after the other; yields its name, the initial network, which masks
    stand for it, and what is to be measured of them by the split."""
    setting = stages.setting
    of_setting = f"n = {setting.num_labeled}, seed {setting.seed}"
    stages.begin(f"initial, {of_setting}")
    initial = stages.train(setting.initial_training())
    for name in methods:
        stages.begin(f"{name}, {of_setting}")
        measured = METHODS[name].run(stages, initial)
        evaluations = {"test": Evaluation(measured.model, setting.labels[measured.kind], "test", setting.selection,
                                          results_dir, tolerance)}
        if METHODS[name].final and (labels := measured.trained_on or setting.labels.get(name)):  # not another method's
            measured = measured._replace(trained_on=labels, labeler=measured.labeler or initial)
            if setting.can_measure_unlabeled():
                evaluations["unlabeled"] = Evaluation(measured.labeler, labels, "unlabeled", setting.selection,
                                                      results_dir)
        yield name, initial, measured, evaluations


def measure_once(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    """Yields (image, class, the MEASURES in percent) of each class that an image shows."""
    evaluation.run_if_missing()
    description = evaluation.model.data.description
    values = {name: {row.pop("stem"): row for row in read_rows(path, ["stem", "mean"])}
              for name, path in evaluation.tables.items()}
    for stem, classes in values["dice"].items():
        if stem in description.left_out_of_averages:
            continue
        for label in description.labels:
            if classes[label]:
                yield stem, label, *(values[name][stem][label] if name in values else "" for name in MEASURES)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
