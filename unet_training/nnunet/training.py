"""nnU-Nets as models with an id: trained on the labeled images of an initial network, and found again."""
import shutil
import tempfile
from pathlib import Path
from typing import Any

from unet_training.models import TrainedModel
from unet_training.nnunet.nnunet import NNUNet, NNUNetOptions, find_command
from unet_training.training_stage import data_parameters
from utils.errors import InputError
from utils.locks import exclusive
from utils.options import option_values
from utils.paths import nnunet_folder
from utils.tracking.experiment import start
from utils.tracking.models import Model, fetch_model, find_models, name_result


def train_nnunet(options: NNUNetOptions, seed: int, initial: TrainedModel) -> str:
    """Trains on the images that the initial network was trained on, at its input size; returns the new model's id.

    Raises:
        InputError: nnU-Net isn't installed, or fails.
    """
    find_command()
    data, stems = initial.data, initial.labeled_stems()
    folder = nnunet_folder(data.derived_dir, data.description.name, len(stems), data.description.input_size, seed)
    nnunet = NNUNet(folder / options.variant, data, options, initial.device)
    parameters = {**identity(options, seed, initial), "initial_model_id": initial.id}
    with exclusive(nnunet.folder), \
            start(f"train {name_result(parameters)}", parameters, ("nnunet", data.description.name),
                  module="scripts.train_nnunet", chosen={"model_id": initial.id}) as experiment:
        experiment.use_model(initial.id)
        nnunet.train(stems)
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "nnunet.zip"
            nnunet.pack(archive)
            model_id = experiment.save_model(archive, data.description.labels)
            experiment.note(f"model id: {model_id}")
    shutil.rmtree(nnunet.folder)
    print(f"model id: {model_id}")
    return model_id


def find_nnunet(options: NNUNetOptions, seed: int, initial: TrainedModel) -> Model:
    """The newest nnU-Net of these options and images. Raises InputError if there is none."""
    wanted = identity(options, seed, initial)
    if models := find_models(**wanted):
        return models[0]
    raise InputError(f"no nnU-Net was trained with {wanted}; do so with scripts.train_nnunet")


def train_nnunet_if_missing(options: NNUNetOptions, seed: int, initial: TrainedModel) -> Model:
    """The newest nnU-Net of these options and images, or else a new one."""
    models = find_models(**identity(options, seed, initial))
    return models[0] if models else fetch_model(train_nnunet(options, seed, initial))


def identity(options: NNUNetOptions, seed: int, initial: TrainedModel) -> dict[str, Any]:
    """The parameters by which an nnU-Net is found again: it doesn't depend on the initial network's weights."""
    stems = initial.labeled_stems()
    return {"stage": "nnunet", "num_train_samples": len(stems), "seed": seed, **option_values(options),
            **data_parameters(initial.data, stems)}
