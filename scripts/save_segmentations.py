"""Segments the unlabeled images with the initial U-Net: the raw pseudo labels (paper, section 4).

    python -m scripts.save_segmentations
    python -m scripts.save_segmentations --dataset phantom --num_train_samples 5

A rerun only predicts what is missing.

Reads   a model by its id, the unlabeled images of the data set
Writes  data/seg_masks/<model id>/raw.h5 (layout: utils/mask_store.py)
"""
import argparse
from pathlib import Path

from unet_training.arguments import (
    add_common_arguments,
    add_model_arguments,
    add_prediction_arguments,
    load_model_and_data,
    task_parameters,
    unlabeled_stems,
)
from unet_training.data import ImageDataset
from unet_training.prediction import predict
from utils.cli import run_stage, select_device, stage_parser
from utils.mask_store import MaskWriter
from utils.paths import mask_file
from utils.tracking.experiment import start


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.save_segmentations", __doc__)
    add_common_arguments(parser)
    add_model_arguments(parser)
    add_prediction_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file of raw masks."""
    device = select_device(args.gpu_id)
    model, u_net, _, data = load_model_and_data(args, device)
    path = mask_file(args.data_dir, model.id, "raw")
    writer = MaskWriter(path, data.description.labels, {"clearml_model_id": model.id, "dataset": args.dataset})
    missing = writer.missing(unlabeled_stems(args, model, data))
    if missing:
        parameters = task_parameters(args, "predict")
        with start("save_segmentations", parameters, ("predict", args.dataset)) as experiment:
            experiment.use_model(model.id)
            with writer:
                predicted = predict(u_net, ImageDataset(data, missing), device, args.infer_batch_size)
                writer.write_all((stem, probabilities > 0.5) for stem, probabilities in predicted)
    print(f"raw masks: {path} ({len(missing)} new)")
    return path


if __name__ == "__main__":
    run_stage(main, get_args_parser())
