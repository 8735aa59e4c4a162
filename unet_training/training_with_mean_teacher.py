"""Goes on training the initial U-Net on labeled and unlabeled images with a mean teacher (paper's comparison).

    python -m unet_training.training_with_mean_teacher --gpu_id 0
    python -m unet_training.training_with_mean_teacher --dataset phantom --num_train_samples 5 --epochs 9 --batch_size 4

    python -m unet_training.training_with_mean_teacher --reliable

Labeled and unlabeled images are shuffled together. The teacher is the result. With `--reliable` those unlabeled
images on whose masks SAM agrees with the U-Net enter as labeled. Prints `model id: <id>` as its last line.

Reads   a model by its id, the labeled images that it was trained on, the unlabeled images; with `--reliable` the
        masks that scripts.add_sam_agreement saved
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""
import argparse

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_sam_arguments,
    add_unlabeled_arguments,
    agreement_kind,
    data_parameters,
    labeled_stems,
    load_model_and_data,
    num_train_samples,
    saved_masks,
    task_parameters,
    unlabeled_stems,
)
from unet_training.data import (
    EpochLoader,
    ImageDataset,
    LabeledDataset,
    PartlyLabeledDataset,
    PseudoLabelDataset,
    resident_batches,
)
from unet_training.hyper_params import (
    add_loading_arguments,
    add_pos_weight_cap_argument,
    add_training_arguments,
    loss_from,
    schedule_from,
)
from unet_training.mean_teacher import MeanTeacher, mean_teacher_epoch
from unet_training.trainer import fingerprint, fit, publish
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.paths import training_state
from utils.tracking.experiment import start
from utils.tracking.models import Model
from utils.tracking.offline_runs import runs_dir


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training_with_mean_teacher", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_unlabeled_arguments(parser)
    parser.add_argument("--reliable", type=float, nargs="?", const=0.85, metavar="DICE",
                        help="take masks as labels on which SAM agrees by this Dice or more; 0.85 if it isn't given")
    add_sam_arguments(parser)
    add_training_arguments(parser)
    add_pos_weight_cap_argument(parser)
    add_loading_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    device = select_device(args.gpu_id)
    initial, u_net, training, data = load_model_and_data(args, device)
    labeled = LabeledDataset(data, labeled_stems(args, initial, data))
    unlabeled = unlabeled_stems(args, initial, data)
    if args.reliable is not None:
        masks = saved_masks(args, initial.id, agreement_kind(args, data), data)
        reliable = [stem for stem in unlabeled if np.nanmean(masks.estimated_dice(stem)) >= args.reliable]
        print(f"{len(reliable)} of {len(unlabeled)} unlabeled images enter as labeled")
        labeled = ConcatDataset([labeled, PseudoLabelDataset(data, reliable, masks)])
        unlabeled = sorted(set(unlabeled) - set(reliable))
    train = PartlyLabeledDataset(labeled, ImageDataset(data, unlabeled))
    if len(train) < args.batch_size:
        raise InputError(f"data set {args.dataset}: {len(train)} images don't fill one batch of {args.batch_size}; "
                         "give a smaller --batch_size")
    torch.manual_seed(args.seed)
    train_batches = EpochLoader(train, args.batch_size, shuffle=True, drop_last=True, num_workers=args.num_workers,
                                persistent_workers=args.num_workers > 0)
    val_batches = resident_batches(LabeledDataset(data, data.stems("val")), args.infer_batch_size, device)
    loss_function = loss_from(args, data.description.pos_weight, device)
    parameters = run_parameters(args, initial, data)
    state_file = training_state(runs_dir(), fingerprint(parameters))
    with start("training_with_mean_teacher", parameters, tags=("mean_teacher", args.dataset)) as experiment:
        experiment.use_model(initial.id)
        model = MeanTeacher(u_net)
        fit(model, train_batches, val_batches, loss_function, schedule_from(args), device, experiment, training.labels,
            state_file, mean_teacher_epoch)
        model_id = publish(experiment, model.teacher, training, state_file)
    print(f"model id: {model_id}")
    return model_id


def run_parameters(args: argparse.Namespace, initial: Model, data: AnnotatedImages) -> dict:
    """What the result depends on: a training with the same ones is the same training."""
    stems = labeled_stems(args, initial, data), unlabeled_stems(args, initial, data)
    return task_parameters(args, "mean_teacher", initial_model_id=initial.id,
                           num_train_samples=num_train_samples(args, initial), **data_parameters(data, *stems))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
