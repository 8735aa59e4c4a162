"""Makes a model with an id of a U-Net that the authors' code trained, for all stages that come after it.

    python -m scripts.import_checkpoint --file bone_segmentator.pth --num_train_samples 43
    python -m scripts.import_checkpoint --file teeth.pth --dataset dental --num_train_samples 45 --input_size 224 384

The authors' file doesn't say what the network was trained on, so the arguments do; mean and standard deviation are the
data set's. Prints `model id: <id>` as its last line.

Reads   a checkpoint of the authors' code (custom_arcitecture/modelio.py), the description of the data set
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""
import argparse
import tempfile
from pathlib import Path

from unet_training.checkpoint import Training, load_checkpoint, save_checkpoint
from unet_training.models import DataOptions
from utils.cli import run_stage, stage_parser
from utils.datasets.description import load_description
from utils.options import add_options, options_from, positive_int
from utils.tracking.experiment import start
from utils.tracking.models import name_result


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.import_checkpoint", __doc__)
    add_options(parser, DataOptions, only=("dataset", "data_dir"))
    parser.add_argument("--file", type=Path, required=True, help="the authors' checkpoint")
    parser.add_argument("--num_train_samples", type=positive_int, default=43,
                        help="labeled images that the network was trained on, the first n of the list")
    parser.add_argument("--input_size", type=positive_int, nargs=2, metavar=("H", "W"),
                        help="size of the network's input (left out: the data set's)")
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the model."""
    where = options_from(DataOptions, args)
    description = load_description(where.dataset, where.data_dir)
    size = tuple(args.input_size or description.input_size)
    training = Training(where.dataset, description.labels, size, description.mean, description.std)
    network, training = load_checkpoint(args.file, unstated=training)
    parameters = {"stage": "initial", "architecture": network.architecture, "dataset": where.dataset,
                  "num_train_samples": args.num_train_samples, "input_size": list(training.input_size),
                  "imported": args.file.name}
    with start(f"import {name_result(parameters)}", parameters, ("initial", where.dataset), kind="data_processing",
               module="scripts.import_checkpoint") as experiment, \
            tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "bone_segmentator.pt"
        save_checkpoint(weights, network, training)
        model_id = experiment.save_model(weights, training.labels)
    print(f"model id: {model_id}")
    return model_id


if __name__ == "__main__":
    run_stage(main, get_args_parser())
