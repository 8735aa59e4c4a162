"""What initial networks predict of labeled images that they haven't seen (cross-validation)."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from unet_training.hyper_params import InitialOptions, Sampling, Schedule
from unet_training.models import TrainedModel
from unet_training.networks.network import Network
from unet_training.networks.registry import Architecture, rebuild
from unet_training.training import InitialTraining
from unet_training.training_stage import train_if_missing
from utils.datasets.description import DatasetDescription
from utils.tracking.models import fetch_model

Options = TypeVar("Options")


def predict_held_out(initial: TrainedModel, folds: int) -> dict[str, np.ndarray]:
    """Probabilities of the initial network's labeled images, float32 (C, H, W), each by a network that was trained, as
    the initial one, on the labeled images of the other folds; {} where there are fewer than two folds or images."""
    stems, held_out = initial.labeled_stems(), {}
    count = min(folds, len(stems))
    if count < 2:
        return {}
    for number in range(count):
        training = FoldTraining.like(initial, [stem for index, stem in enumerate(stems) if index % count != number])
        record = fetch_model(train_if_missing(training, initial.device))
        network = TrainedModel.load(record, initial.data, initial.device, initial.batch_size)
        held_out.update(network.probabilities(stems[number::count]))
    return held_out


@dataclass(frozen=True)
class FoldTraining(InitialTraining):
    """An initial training on some of the labeled images; it has a stage of its own, so that nobody takes its network
    for the initial one."""

    fold: tuple[str, ...] = ()

    task = "training_on_a_fold"

    @classmethod
    def like(cls, initial: TrainedModel, stems: Sequence[str]) -> "FoldTraining":
        """With the options of the initial network's training, as far as its record has them."""
        made = initial.record.parameters
        options = replace(_options_of(InitialOptions, made), start_from=None)  # that one may have seen what is held out
        return cls(_options_of(Schedule, made), made.get("seed", 42), initial.data, _Same(initial.network.student),
                   _options_of(Sampling, made), initial.batch_size, options, tuple(stems))

    @property
    def stems(self) -> list[str]:
        return list(self.fold)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters, "stage": "fold"}

    @property
    def tags(self) -> tuple[str, ...]:
        return "fold", *super().tags[1:]


class _Same(Architecture):
    """That of a network, with random weights."""

    def __init__(self, network: Network):
        super().__init__(network.architecture, network.config)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"architecture": self.name, **self.options}

    def build(self, description: DatasetDescription) -> Network:
        return rebuild(self.name, self.options)


def _options_of(options: type[Options], parameters: Mapping[str, Any]) -> Options:
    return options(**{field.name: parameters[field.name] for field in fields(options) if field.name in parameters})
