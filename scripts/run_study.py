"""Trains and tests every method at every number of labeled images and seed (paper, the comparison).

    python -m scripts.run_study --gpu_id 0 --num_train_samples 1 5 10 15 20 25 30 35 43
    python -m scripts.run_study --dataset phantom --num_train_samples 5 20 --methods initial sam mean_teacher --epochs 24 --batch_size 4

A rerun only does what is missing. All other arguments are those of scripts.run_pipeline, for every method alike.

    initial                the initial U-Net
    raw, sam, random_walk  the final U-Net on raw pseudo labels, or on those refined by SAM or a random walk
    medsam                 as sam, with MedSAM's weights and the box alone
    mixed                  as sam, labeled images filling half of every batch, fine-tuned from the initial U-Net
    mean_teacher           from the initial U-Net on
    reliable_mean_teacher  as mean_teacher, masks on which SAM agrees entering as labels
    lraspp_on_sam          LR-ASPP on SAM's frozen encoder, trained on the labeled images, without augmentation so that
                           the encoder sees each of them once
    nnunet                 the final U-Net on nnU-Net's masks (needs requirements_nnunet.txt)
    nnunet_alone           nnU-Net's own masks of the test images

Reads   the images and annotations of the data set, SAM's weights
Writes  what the stages write, and in --results_dir: study.csv (a row per method, n, seed, test image and class that it
        shows, in percent), pseudo_labels.csv (the same of the pseudo labels of unlabeled images, where their ground truth is
        known, with SAM's estimate) and manifest.json (the models that each number came from); see scripts.plot_results
"""  # noqa: E501 (a command to copy)
import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts import (
    add_sam_agreement,
    evaluate,
    run_pipeline,
    train_nnunet,
)
from scripts.run_pipeline import SAVING_STAGES, check_early, headline, run, stage_arguments, train_if_missing
from scripts.train_nnunet import train_nnunet_if_missing
from segment_anything.registry import check_present, default_checkpoint
from unet_training import training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.arguments import data_parameters, plain_values, print_sam_notice, resolve_sam
from unet_training.nnunet.nnunet import find_command
from utils.cli import run_stage, stage_parser
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.files import atomic_path
from utils.options import positive_float
from utils.tables import read_rows, write_rows

MEASURES = ("dice", "surface_dice", "estimated_dice")
COLUMNS = ("dataset", "method", "n", "seed", "image", "class", *MEASURES, "model_id")
FINE_TUNED = {"mixed": True, "train_from_scratch": False}
PSEUDO_LABELS = {  # the arguments that name them
    **{kind: {"pseudo_label": kind} for kind in SAVING_STAGES},
    "medsam": {"pseudo_label": "sam", "sam_type": "medsam", "sam_checkpoint": None, "prompt1st": ["box"],
               "prompt2nd": []},
}


def _final(pseudo_labels: str, **options: object) -> Callable[[argparse.Namespace, str], str]:
    """A method that trains the final U-Net on pseudo labels."""
    named = PSEUDO_LABELS[pseudo_labels]

    def train(args: argparse.Namespace, initial: str) -> str:
        run(SAVING_STAGES[named["pseudo_label"]], args, model_id=initial, **named)
        return train_if_missing(training_on_pseudo_labels, args, model_id=initial, **named, **options)
    return train


def _mean_teacher(args: argparse.Namespace, initial: str) -> str:
    return train_if_missing(training_with_mean_teacher, args, model_id=initial)


def _reliable_mean_teacher(args: argparse.Namespace, initial: str) -> str:
    run(add_sam_agreement, args, model_id=initial)
    return train_if_missing(training_with_mean_teacher, args, model_id=initial, reliable=0.85)


def _lraspp_on_sam(args: argparse.Namespace, initial: str) -> str:
    return train_if_missing(training, args, architecture="lraspp_on_sam", data_aug=0.0)


def _nnunet_alone(args: argparse.Namespace, initial: str) -> str:
    train_nnunet_if_missing(stage_arguments(train_nnunet, args, model_id=initial))
    return initial


METHODS: dict[str, Callable[[argparse.Namespace, str], str]] = {  # from the initial model's id to the method's
    "initial": lambda _, initial: initial,
    "raw": _final("raw"),
    "random_walk": _final("random_walk"),
    "sam": _final("sam"),
    "medsam": _final("medsam"),
    "mixed": _final("sam", **FINE_TUNED),
    "mean_teacher": _mean_teacher,
    "reliable_mean_teacher": _reliable_mean_teacher,
    "lraspp_on_sam": _lraspp_on_sam,
    "nnunet": _final("nnunet"),
    "nnunet_alone": _nnunet_alone,
}
OWN_MASKS = {"nnunet_alone": "nnunet"}  # measured instead of what a U-Net makes of the test images
OF_SAM = {"sam", "mixed", "reliable_mean_teacher", "lraspp_on_sam"}
OPTIONAL = ("medsam", "nnunet", "nnunet_alone")  # whose weights or packages not all have


def get_args_parser() -> argparse.ArgumentParser:
    # "resolve": what varies in a study takes the place of one run's
    parser = stage_parser("scripts.run_study", __doc__, conflict_handler="resolve")
    run_pipeline.add_arguments(parser)
    parser.add_argument("--num_train_samples", nargs="+", type=int, default=[5, 20, 43], help="labeled images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds of all random numbers")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="what to compare",
                        default=[method for method in METHODS if method not in OPTIONAL])
    parser.add_argument("--surface_tolerance", type=positive_float, default=2, metavar="PIXELS",
                        help="how far outlines may be apart in the surface Dice")
    for settled in ("--seed", "--pseudo_label"):
        parser.add_argument(settled, help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the table's file."""
    data = open_dataset(args.dataset, args.data_dir)
    for n in args.num_train_samples:
        check_early(args, data, n, final={"mixed", *PSEUDO_LABELS}.intersection(args.methods))
    if any(method.startswith("nnunet") for method in args.methods):
        find_command()
    if OF_SAM & set(args.methods):
        check_present(*resolve_sam(args, data))
    if "medsam" in args.methods:
        check_present("medsam", default_checkpoint("medsam", args.data_dir))
    rows, pseudo_label_rows, manifest = [], [], []
    for n in args.num_train_samples:
        for seed in args.seeds:
            one = argparse.Namespace(**{**vars(args), "num_train_samples": n, "seed": seed})
            stems = data.unlabeled_stems(n, args.split500, seed)
            for method, initial, model_id in results(one):
                key, masks = (args.dataset, method, n, seed), OWN_MASKS.get(method, "raw")
                on_test = measured(one, data, model_id, data.stems("test"), split="test", pseudo_label=masks)
                rows += [(*key, *row, model_id) for row in on_test]
                if method in PSEUDO_LABELS and all(data.has_ground_truth(stem) for stem in stems):
                    quality = measured(one, data, initial, stems, split="unlabeled", surface_tolerance=None,
                                       **PSEUDO_LABELS[method])
                    pseudo_label_rows += [(*key, *row, initial) for row in quality]
                manifest.append({"method": method, "n": n, "seed": seed, "initial_model_id": initial,
                                 "model_id": model_id, "masks": masks})
    table = args.results_dir / "study.csv"
    write_rows(table, [COLUMNS, *rows])
    write_rows(args.results_dir / "pseudo_labels.csv", [COLUMNS, *pseudo_label_rows])
    with atomic_path(args.results_dir / "manifest.json") as temporary:
        sam_type, _ = resolve_sam(args, data)
        text = json.dumps({"arguments": plain_values(args), "sam_type": sam_type, "results": manifest}, indent=1)
        temporary.write_text(text, encoding="utf-8")
    print_sam_notice(args, data)
    print(f"table: {table}")
    return table


def results(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yields (method, initial model's id, the method's model id) at one number of labeled images and seed."""
    headline(f"initial, n = {args.num_train_samples}, seed {args.seed}")
    initial = train_if_missing(training, args)
    for method in args.methods:
        headline(f"{method}, n = {args.num_train_samples}, seed {args.seed}")
        yield method, initial, METHODS[method](args, initial)


def measured(args: argparse.Namespace, data: AnnotatedImages, model_id: str, stems: list[str], **options: object
             ) -> Iterator[tuple[str, ...]]:
    """Yields (image, class, the MEASURES in percent) of each class that an image shows; measured once on these images
    and their masks."""
    evaluation = stage_arguments(evaluate, args, model_id=model_id, **options)
    tables = evaluate.result_tables(evaluation, model_id, data)
    record, images = tables["dice"].with_name("images.txt"), data_parameters(data, stems)["images"]
    if not all(path.exists() for path in (*tables.values(), record)) or record.read_text(encoding="utf-8") != images:
        evaluate.main(evaluation)
        with atomic_path(record) as temporary:
            temporary.write_text(images, encoding="utf-8")
    values = {name: {row.pop("stem"): row for row in read_rows(path, ["stem", "mean"])}
              for name, path in tables.items()}
    for stem, classes in values["dice"].items():
        if stem not in data.description.left_out_of_averages:
            yield from ((stem, label, *(values[name][stem][label] if name in values else "" for name in MEASURES))
                        for label in data.description.labels if classes[label])


if __name__ == "__main__":
    run_stage(main, get_args_parser())
