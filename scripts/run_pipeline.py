"""Runs all stages in order, each on the model id of the one before, and tabulates the Dice.

    python -m scripts.run_pipeline --gpu_id 0
    python -m scripts.run_pipeline --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3 --base_width 8 --input_size 192 112

The first line is the paper's setting. A rerun with the same arguments skips what is already there.

Reads   the images and annotations of the data set, SAM's weights
Writes  what the stages write, and in --results_dir: results.csv, pipeline.png, dice.csv and overlays of each row
"""  # noqa: E501 (a command to copy)
import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from scripts import (
    evaluate,
    save_nnunet_segmentations,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
)
from segment_anything.refinement.refine import add_refinement_arguments, options_from
from segment_anything.registry import check_present
from unet_training import training, training_on_pseudo_labels
from unet_training.arguments import (
    add_common_arguments,
    add_pseudo_label_argument,
    add_sam_arguments,
    add_unlabeled_arguments,
    load_model_and_data,
    print_sam_notice,
    pseudo_label_kind,
    resolve_sam,
    sam_name,
    task_parameters,
)
from unet_training.hyper_params import (
    add_final_arguments,
    add_initial_arguments,
    add_loading_arguments,
    add_training_arguments,
)
from unet_training.nnunet.nnunet import find_command
from utils.cli import run_stage, stage_parser
from utils.csv_tables import write_rows
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.errors import InputError
from utils.files import read_grey, write_png
from utils.mask_store import MaskStore
from utils.overlay import overlay, side_by_side, stack, to_grey
from utils.paths import RESULTS, mask_file
from utils.tracking.models import Model, find_models

Row = tuple[str, str, evaluate.Summary]
PICTURED = 2
SAVING_STAGES = {"raw": save_segmentations, "sam": save_refined_segmentations,  # of each kind of pseudo labels
                 "random_walk": save_random_walk_segmentations, "nnunet": save_nnunet_segmentations}


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.run_pipeline", __doc__)
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of all stages between the initial and the final U-Net."""
    add_common_arguments(parser)
    add_initial_arguments(parser)
    add_training_arguments(parser)
    add_loading_arguments(parser)
    add_unlabeled_arguments(parser)
    add_final_arguments(parser)
    add_pseudo_label_argument(parser, default="sam")
    add_sam_arguments(parser)
    add_refinement_arguments(parser)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the table and the pictures")


def main(args: argparse.Namespace) -> list[Row]:
    """Returns the rows of the table."""
    data = open_dataset(args.dataset, args.data_dir, args.input_size)
    check_early(args, data, args.num_train_samples, final=True)
    if args.pseudo_label == "sam":
        check_present(*resolve_sam(args, data))
    elif args.pseudo_label == "nnunet":
        find_command()
    headline("initial U-Net")
    initial = train_if_missing(training, args)
    headline("raw pseudo labels")
    run(save_segmentations, args, model_id=initial)
    measured = {"raw": "raw"}
    if args.pseudo_label != "raw":
        measured["refined"] = args.pseudo_label
        headline("refined pseudo labels")
        run(SAVING_STAGES[args.pseudo_label], args, model_id=initial)
    headline("final U-Net")
    final = train_if_missing(training_on_pseudo_labels, args, model_id=initial)
    headline("evaluation")
    rows = [("initial", "test", run(evaluate, args, model_id=initial, split="test", pseudo_label="raw"))]
    unlabeled = data.unlabeled_stems(args.num_train_samples, args.split500, args.seed)
    if all(data.has_ground_truth(stem) for stem in unlabeled):
        rows += [(what, "unlabeled", run(evaluate, args, model_id=initial, split="unlabeled", pseudo_label=label))
                 for what, label in measured.items()]
    rows.append(("final", "test", run(evaluate, args, model_id=final, split="test", pseudo_label="raw")))
    write_table(args.results_dir / "results.csv", rows)
    write_png(args.results_dir / "pipeline.png", picture_of_the_pipeline(args, data, initial))
    print_table(args, data, rows)
    return rows


def check_early(args: argparse.Namespace, data: AnnotatedImages, n: int, final: object) -> None:
    """Tells mistakes in what comes late before the hours of training.

    Args:
        n: number of labeled images
        final: true where pseudo labels will be trained on
    Raises:
        InputError: the refinement's options, the number of labeled images or the batch size have no meaning, or the
            results have no place.
    """
    options_from(args)
    data.stems("train", n)
    if (found := len(data.unlabeled_stems(n, args.split500, args.seed))) < args.batch_size and final:
        raise InputError(f"data set {args.dataset}: {found} unlabeled images don't fill one batch of "
                         f"{args.batch_size}; give a smaller --batch_size")
    if args.results_dir.is_file():
        raise InputError(f"{args.results_dir}: is a file; name a folder with --results_dir")


def stage_arguments(stage: ModuleType, args: argparse.Namespace, **more: object) -> argparse.Namespace:
    """The stage's own defaults, overridden by this pipeline's arguments of the same names and by `more`."""
    values = vars(stage.get_args_parser().parse_args([]))
    values.update({name: value for name, value in {**vars(args), **more}.items() if name in values})
    return argparse.Namespace(**values)


def run(stage: ModuleType, args: argparse.Namespace, **more: object) -> object:
    """Runs one stage and returns what its `main` returns."""
    main_function: Callable = stage.main
    return main_function(stage_arguments(stage, args, **more))


def train_if_missing(stage: ModuleType, args: argparse.Namespace, **more: object) -> str:
    """The id of a model that was trained with exactly these arguments on the data as they are, or else a new one.

    For an argument that there was not when a model was trained stands its default.
    """
    asked = stage_arguments(stage, args, **more)
    wanted = stage.run_parameters(asked, *sources(asked))
    name = wanted["stage"]
    defaults = task_parameters(stage_arguments(stage, argparse.Namespace()), name)
    models = [model for model in find_models(stage=name) if wanted.items() <= {**defaults, **model.parameters}.items()]
    if not models:
        return run(stage, args, **more)
    print(f"already trained: {models[0].id}")
    return models[0].id


def sources(args: argparse.Namespace) -> tuple[AnnotatedImages] | tuple[Model, AnnotatedImages]:
    """What a training starts from: the data, after the initial model where there is one."""
    if "model_id" not in args:
        return (open_dataset(args.dataset, args.data_dir, args.input_size),)
    initial, _, _, data = load_model_and_data(args, torch.device("cpu"))
    return initial, data


def headline(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


def write_table(path: Path, rows: list[Row]) -> None:
    """Columns what, split, dice_mean, dice_std (both in percent), n_images."""
    write_rows(path, [["what", "split", "dice_mean", "dice_std", "n_images"],
                      *([what, split, f"{s.mean:.4f}", f"{s.std:.4f}", s.count] for what, split, s in rows)])


def picture_of_the_pipeline(args: argparse.Namespace, data: AnnotatedImages, initial: str) -> np.ndarray:
    """The first unlabeled images with what the stages made of them (and the ground truth where it is known), RGB."""
    kinds = {"raw": "initial U-Net"}
    kinds.setdefault(pseudo_label_kind(args, data), refinement_of(args, data))
    stores = {title: MaskStore(mask_file(args.data_dir, initial, kind), data.description.labels)
              for kind, title in kinds.items()}
    rows = []
    for stem in data.unlabeled_stems(args.num_train_samples, args.split500, args.seed)[:PICTURED]:
        grey = to_grey(read_grey(data.image_path(stem)))
        masks = {"ground truth": data.mask(stem)} if data.has_ground_truth(stem) else {}
        masks |= {title: store.mask(stem) for title, store in stores.items()}
        panels = [overlay(grey, mask) for mask in ((), *masks.values())]
        rows.append(side_by_side(panels, [stem[:24], *masks]))
    return stack(rows)


def refinement_of(args: argparse.Namespace, data: AnnotatedImages) -> str:
    return {"raw": "no refinement", "sam": f"SAM type {sam_name(args, data)}",
            "random_walk": f"random walk ({args.random_walk})",
            "nnunet": f"nnU-Net ({args.nnunet_encoding})"}[args.pseudo_label]


def print_table(args: argparse.Namespace, data: AnnotatedImages, rows: list[Row]) -> None:
    names = {"initial": "initial U-Net", "raw": "raw pseudo labels", "refined": "refined pseudo labels",
             "final": "final U-Net"}
    print(f"\nData set {args.dataset}, {args.num_train_samples} labeled images, seed {args.seed}, "
          f"{refinement_of(args, data)}")
    print(f"{'':24}{'images':>18}  Dice in %, mean ± std")
    for what, split, summary in rows:
        print(f"{names[what]:24}{f'{summary.count} {split}':>18}  {summary.mean:6.2f} ± {summary.std:5.2f}")
    if args.pseudo_label == "sam":
        print_sam_notice(args, data)
    print(f"table and overlays: {args.results_dir}")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
