"""Segments the unlabeled images with nnU-Net: pseudo labels without U-Net and SAM (paper's comparison).

    python -m scripts.save_nnunet_segmentations --gpu_id 0
    python -m scripts.save_nnunet_segmentations --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

The newest nnU-Net of the same arguments is taken, or the one that --nnunet_model_id names; if there is none, it is
trained first, as by scripts.train_nnunet. Its masks are filed under the initial U-Net's model id, which says which images
are labeled. A rerun only predicts what is missing.

Reads   two models by their ids, images of the data set
Writes  data/seg_masks/<model id>/nnunet_<encoding>[_<epochs>x<iterations>].h5
"""  # noqa: E501 (a command to copy)
import argparse
from pathlib import Path

from scripts.train_nnunet import train_nnunet_if_missing
from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_nnunet_arguments,
    add_unlabeled_arguments,
    load_model_and_data,
    nnunet_kind,
    task_parameters,
    unlabeled_stems,
)
from unet_training.nnunet.nnunet import find_command, unpack
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.mask_store import MaskWriter
from utils.paths import mask_file
from utils.tracking.experiment import start
from utils.tracking.models import Model, fetch_model


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_nnunet_segmentations", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_unlabeled_arguments(parser)
    add_nnunet_arguments(parser)
    parser.add_argument("--nnunet_model_id", help="the nnU-Net (left out: the newest of the arguments above)")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of masks."""
    device = select_device(args.gpu_id)
    initial, _, _, data = load_model_and_data(args, device)
    nnunet = fetch_model(args.nnunet_model_id) if args.nnunet_model_id else train_nnunet_if_missing(args)
    path = mask_file(args.data_dir, initial.id, nnunet_kind(settings_of(nnunet)))
    attributes = {"clearml_model_id": initial.id, "dataset": args.dataset, "nnunet_model_id": nnunet.id}
    writer = MaskWriter(path, data.description.labels, attributes)
    missing = writer.missing(unlabeled_stems(args, initial, data))
    if missing:
        find_command()
        with start("save_nnunet_segmentations", task_parameters(args, "predict_nnunet"),
                   ("nnunet", args.dataset)) as experiment:
            experiment.use_model(initial.id)
            experiment.use_model(nnunet.id)
            with unpack(nnunet.weights, data, device) as network, writer:
                writer.write_all(network.predict(missing))
    print(f"nnU-Net's masks: {path} ({len(missing)} new)")
    return path


def settings_of(nnunet: Model) -> argparse.Namespace:
    """The arguments that it was trained with.

    Raises:
        InputError: it is no nnU-Net.
    """
    if nnunet.parameters.get("stage") != "nnunet":
        raise InputError(f"model id {nnunet.id}: is no nnU-Net; give the id that scripts.train_nnunet printed")
    return argparse.Namespace(**nnunet.parameters)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
