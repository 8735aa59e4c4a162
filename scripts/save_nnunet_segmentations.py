"""Segments the unlabelled images with nnU-Net: pseudo labels without U-Net and SAM (paper's comparison).

    python -m scripts.save_nnunet_segmentations --gpu_id 0
    python -m scripts.save_nnunet_segmentations --dataset phantom --num_train_samples 5 --nnunet_epochs 10 --nnunet_iterations 25

An nnU-Net that isn't trained yet is trained first, as by scripts.train_nnunet. Its masks are filed under the initial
U-Net's model id, which says which images are labelled. A rerun only predicts what is missing.

Reads   a model by its id, images of the data set, data/<dataset>/nnunet/
Writes  data/seg_masks/<model id>/nnunet_<encoding>[_<epochs>x<iterations>].h5
"""  # noqa: E501 (a command to copy)
import argparse
from pathlib import Path

from scripts.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_nnunet_arguments,
    add_unlabelled_arguments,
    load_model_and_data,
    nnunet_kind,
    task_parameters,
    unlabelled_stems,
)
from scripts.nnunet import find_command
from scripts.train_nnunet import nnunet_of
from utils.cli import run_stage, select_device, stage_parser
from utils.experiment import start
from utils.mask_store import MaskWriter
from utils.paths import mask_file


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_nnunet_segmentations", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_unlabelled_arguments(parser)
    add_nnunet_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of masks."""
    device = select_device(args.gpu_id)
    model, _, _, data = load_model_and_data(args, device)
    nnunet = nnunet_of(args, model, data, device)
    path = mask_file(args.data_dir, model.id, nnunet_kind(args))
    origin = {"clearml_model_id": model.id, "nnunet": nnunet.folder.parent.name}
    writer = MaskWriter(path, data.description.labels, origin)
    missing = writer.missing(unlabelled_stems(args, model, data))
    if missing:
        find_command()
        with start("save_nnunet_segmentations", task_parameters(args, "predict_nnunet"),
                   ("nnunet", args.dataset)) as experiment:
            experiment.use_model(model.id)
            with writer:
                writer.write_all(nnunet.predict(missing))
    print(f"nnU-Net's masks: {path} ({len(missing)} new)")
    return path


if __name__ == "__main__":
    run_stage(main, get_args_parser())
