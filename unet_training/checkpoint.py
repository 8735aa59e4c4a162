"""The file of a trained network, and what it was trained on."""
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from unet_training.networks.network import Network
from unet_training.networks.registry import ARCHITECTURES, rebuild
from utils.errors import InputError
from utils.files import atomic_path


@dataclass(frozen=True)
class Training:
    """What a checkpoint says of its data: a model is only right on images prepared in this way."""

    dataset: str
    labels: tuple[str, ...]
    input_size: tuple[int, int]  # H, W
    mean: float
    std: float

    def check_labels(self, labels: Sequence[str], source: str) -> None:
        """Raises an InputError where the labels of `source` are not those that the model was trained on."""
        if tuple(labels) != self.labels:
            raise InputError(f"the model was trained on the labels {list(self.labels)}, {source} has {list(labels)}; "
                             "name a model of this data set with --model_id")


def save_checkpoint(path: Path, model: Network, training: Training) -> None:
    """Writes the constructor arguments, the weights and what they were trained on."""
    checkpoint = {"architecture": model.architecture, "config": model.config, "training": asdict(training),
                  "state_dict": {name: value.cpu() for name, value in model.state_dict().items()}}
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[Network, Training]:
    """Rebuilds a model, in evaluation mode, from its file alone.

    Raises:
        InputError: the file is missing, isn't a checkpoint, or holds no known architecture; or the SAM checkpoint that
            the model stands on isn't there.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("architecture") not in ARCHITECTURES:
        raise InputError(f"{path}: holds no network of this project; give the id that a training stage printed")
    try:
        model = rebuild(checkpoint["architecture"], checkpoint["config"])
        model.load_state_dict(checkpoint["state_dict"])
        training = Training(**{name: tuple(value) if isinstance(value, list) else value
                               for name, value in checkpoint["training"].items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: its weights don't fit the network it describes ({error}); train it again") from None
    return model.to(device).eval(), training


def _read(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes provoke: UnpicklingError, RuntimeError, EOFError ...
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); train the model again") from None
