"""The file of a trained network, and what it was trained on."""
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unet_training.networks.network import Network
from unet_training.networks.registry import STORED, rebuild
from unet_training.networks.u_net import UNet
from utils.datasets.description import DatasetDescription
from utils.errors import InputError
from utils.files import explain_damage, load_tensors, save_tensors

AUTHORS_NAMES = (  # of the parts of their U-Net, as patterns, and ours
    (r"inc\.double_conv\.", "down.0."),
    (r"down(\d)\.maxpool_conv\.1\.double_conv\.", r"down.\1."),
    (r"up1\.", "up.0."), (r"up2\.", "up.1."), (r"up3\.", "up.2."), (r"up4\.", "up.3."),
    (r"(up\.\d\.conv)\.double_conv\.", r"\1."),
    (r"outc\.conv\.", "out."),
)


@dataclass(frozen=True)
class Training:
    """What a checkpoint says of its data: a model is only right on images prepared in this way."""

    dataset: str
    labels: tuple[str, ...]
    input_size: tuple[int, int]  # H, W
    mean: float
    std: float
    reading: str | None = None  # how image files were read; None: not known

    @classmethod
    def on(cls, description: DatasetDescription) -> "Training":
        """On a data set as it is described."""
        return cls(description.name, description.labels, description.input_size, description.mean, description.std,
                   description.reading)

    def check_data(self, description: DatasetDescription, transfer: bool) -> None:
        """Raises an InputError where the labels of a data set are not those that the model was trained on; without
        `transfer` also for another data set, or one that is read in another way."""
        name, labels = description.name, description.labels
        if labels != self.labels:
            raise InputError(f"the model was trained on the labels {list(self.labels)}, data set {name} has "
                             f"{list(labels)}; name a model of this data set with --model_id")
        if transfer:
            return
        if name != self.dataset:
            raise InputError(f"the model was trained on data set {self.dataset}, not on {name}; name another --dataset "
                             "or --model_id, or give --transfer to apply it all the same")
        if self.reading not in (None, description.reading):
            raise InputError(f"the model was trained on images of {name} that were read as {self.reading!r}, by now "
                             f"they are as {description.reading!r}; train it again, or give --transfer to apply it all "
                             "the same")


def save_checkpoint(path: Path, model: Network, training: Training, origin: Mapping[str, Any] | None = None) -> None:
    """Writes the constructor arguments, the weights, what they were trained on, and what made them."""
    checkpoint = {"architecture": model.architecture, "config": model.config, "training": asdict(training),
                  "origin": json.dumps(origin or {}),
                  "state_dict": {name: value.cpu() for name, value in model.state_dict().items()}}
    save_tensors(path, checkpoint)


def load_checkpoint(path: Path, device: torch.device | str = "cpu",
                    unstated: Training | None = None) -> tuple[Network, Training]:
    """Rebuilds a model, in evaluation mode, from its file: one of ours, or of a U-Net by the authors' code
    (custom_arcitecture/modelio.py).

    Args:
        unstated: what an authors' file was trained on, which it doesn't say; our own files do

    Raises:
        InputError: the file is missing, isn't a checkpoint, or holds no known architecture; the SAM checkpoint that the
            model stands on isn't there; a weight isn't finite; or it is an authors' file, and `unstated` is left out or
            has other labels.
    """
    checkpoint = _read(path)
    if isinstance(checkpoint, dict) and checkpoint.keys() == {"config", "model_state"}:
        if unstated is None:
            raise InputError(f"{path}: is of the authors' code and doesn't say what it was trained on; name its data "
                             "set")
        checkpoint = {**_from_authors(path, checkpoint), "training": asdict(unstated)}
    if not isinstance(checkpoint, dict) or checkpoint.get("architecture") not in STORED:
        raise InputError(f"{path}: holds no network of this project; give the id that a training stage printed")
    with explain_damage(path, "its weights don't fit the network that it describes", "train it again"):
        model = rebuild(checkpoint["architecture"], checkpoint["config"])
        model.load_state_dict(checkpoint["state_dict"])
        training = Training(**{name: tuple(value) if isinstance(value, list) else value
                               for name, value in checkpoint["training"].items()})
        finite = is_finite(model) and math.isfinite(training.mean) and math.isfinite(training.std)
    if len(training.labels) != model.config["n_classes"]:
        raise InputError(f"{path}: a model of {model.config['n_classes']} classes, but data set {training.dataset} has "
                         f"{len(training.labels)} labels; name the data set that it was trained on")
    if not finite:
        raise InputError(f"{path}: holds a number that isn't finite, so it predicts nothing; train it again with a "
                         "smaller --lr")
    return model.to(device).eval(), training


def read_origin(path: Path) -> dict[str, Any]:
    """What made a network, and of which images and models; {} where its file doesn't say. Raises InputError."""
    checkpoint = _read(path)
    with explain_damage(path, "not a readable checkpoint", "train the model again"):
        return json.loads(checkpoint.get("origin", "{}"))


def is_finite(model: torch.nn.Module) -> bool:
    """Whether each of its weights is a finite number."""
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def _from_authors(path: Path, checkpoint: Mapping) -> dict:
    """Architecture, config and weights of an authors' U-Net as our files name them.

    Raises:
        InputError: it is another network of theirs, or a U-Net that upsamples bilinearly or takes colors.
    """
    config, weights = checkpoint["config"], checkpoint["model_state"]
    first, last = (weights.get(name) for name in ("inc.double_conv.0.weight", "outc.conv.weight"))
    if first is None or last is None or first.shape[1] != 1 or config.get("bilinear"):
        raise InputError(f"{path}: a network of the authors' code, but not their U-Net for grey images with transposed "
                         "convolutions, the only one that can be loaded")
    return {"architecture": UNet.architecture,
            "config": {"n_classes": last.shape[0], "base_width": first.shape[0], "n_last_channel": last.shape[1]},
            "state_dict": {_our_name(name): value for name, value in weights.items()}}


def _our_name(name: str) -> str:
    for pattern, ours in AUTHORS_NAMES:
        name = re.sub(f"^{pattern}", ours, name)
    return name


def _read(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    with explain_damage(path, "not a readable checkpoint", "train the model again"):
        return load_tensors(path)
