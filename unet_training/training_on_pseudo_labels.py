"""Trains the final U-Net on saved pseudo labels, raw or refined (paper, section 2).

    python -m unet_training.training_on_pseudo_labels --gpu_id 0 --pseudo_label sam --prompt1st box --prompt2nd pos_points neg_points --num_train_samples 43
    python -m unet_training.training_on_pseudo_labels --dataset phantom --num_train_samples 5 --epochs 40 --batch_size 4 --lr 4e-3

The first line is the paper's setting, for a GPU; the second one takes a few minutes on two CPU cores.
The network has the initial one's architecture and input size. Prints `model id: <id>` as its last line.

Reads   the masks that scripts.save_segmentations, scripts.save_refined_segmentations,
        scripts.save_random_walk_segmentations or scripts.save_nnunet_segmentations saved for the initial model,
        their images, and the labeled validation images
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""  # noqa: E501 (a command to copy)
import argparse

import torch
from torch.utils.data import ConcatDataset

from segment_anything.refinement.refine import add_refinement_arguments
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_pseudo_label_argument,
    add_sam_arguments,
    add_unlabeled_arguments,
    data_parameters,
    labeled_stems,
    load_model_and_data,
    num_train_samples,
    pseudo_label_kind,
    saved_masks,
    task_parameters,
    unlabeled_stems,
)
from unet_training.data import EpochLoader, HalfAndHalf, LabeledDataset, PseudoLabelDataset, resident_batches
from unet_training.hyper_params import (
    add_final_arguments,
    add_loading_arguments,
    add_training_arguments,
    loss_from,
    schedule_from,
)
from unet_training.trainer import fingerprint, fit, publish
from utils.cli import run_stage, select_device, stage_parser
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.paths import training_state
from utils.tracking.experiment import start
from utils.tracking.models import Model
from utils.tracking.offline_runs import runs_dir


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.training_on_pseudo_labels", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_unlabeled_arguments(parser)
    add_pseudo_label_argument(parser, default="sam")
    add_final_arguments(parser)
    add_sam_arguments(parser)
    add_refinement_arguments(parser)
    add_training_arguments(parser)
    add_loading_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the trained model."""
    device = select_device(args.gpu_id)
    initial, u_net, training, data = load_model_and_data(args, device)
    kind = pseudo_label_kind(args, data)
    masks = saved_masks(args, initial.id, kind, data)
    train = PseudoLabelDataset(data, unlabeled_stems(args, initial, data), masks)
    if len(train) < args.batch_size:
        raise InputError(f"{masks.path}: {len(train)} pseudo labels don't fill one batch of {args.batch_size}; "
                         "give a smaller --batch_size")
    validation = LabeledDataset(data, data.stems("val"))
    torch.manual_seed(args.seed)
    model = type(u_net)(**u_net.config).to(device) if args.train_from_scratch else u_net
    batches = {"batch_size": args.batch_size, "shuffle": True, "drop_last": True}
    if args.mixed:
        labeled = LabeledDataset(data, labeled_stems(args, initial, data))
        batches = {"batch_sampler": HalfAndHalf(len(labeled), len(train), args.batch_size)}
        train = ConcatDataset([labeled, train])
    train_batches = EpochLoader(train, **batches, num_workers=args.num_workers,
                                persistent_workers=args.num_workers > 0)
    val_batches = resident_batches(validation, args.infer_batch_size, device)
    loss_function = loss_from(args, data.description.pos_weight, device)
    parameters = run_parameters(args, initial, data)
    state_file = training_state(runs_dir(), fingerprint(parameters))
    with start("training_on_pseudo_labels", parameters, tags=("final", args.dataset, kind)) as experiment:
        experiment.use_model(initial.id)
        fit(model, train_batches, val_batches, loss_function, schedule_from(args), device, experiment, training.labels,
            state_file)
        model_id = publish(experiment, model, training, state_file)
    print(f"model id: {model_id}")
    return model_id


def run_parameters(args: argparse.Namespace, initial: Model, data: AnnotatedImages) -> dict:
    """What the result depends on: a training with the same ones is the same training."""
    labeled = labeled_stems(args, initial, data) if args.mixed else []
    return task_parameters(args, "final", initial_model_id=initial.id, masks=pseudo_label_kind(args, data),
                           num_train_samples=num_train_samples(args, initial),
                           **data_parameters(data, labeled, unlabeled_stems(args, initial, data)))


if __name__ == "__main__":
    run_stage(main, get_args_parser())
