"""What the three trainings have in common: they are named by what they depend on, found again, and run by one body."""
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from unet_training.distributed import exclusive_for_all, track
from unet_training.hyper_params import Schedule
from unet_training.trainer import Prepared, fit, publish
from utils.datasets.annotated import AnnotatedImages
from utils.locks import check_writable, exclusive
from utils.options import is_options, option_values
from utils.paths import training_state
from utils.provenance import describe_run
from utils.ranks import rank
from utils.tracking.models import find_models, name_result
from utils.tracking.offline_runs import runs_dir

CHOOSE_IMAGES = ("split500", "include_annotated", "where", "sample_seed")  # fields of `models.Selection`


@dataclass(frozen=True)
class TrainingStage(ABC):
    """One training of a stage, described by typed options; a subclass stands in the stage's module.

    Attributes:
        schedule: how it is trained
        seed: of all random numbers
    """

    schedule: Schedule
    seed: int
    module: ClassVar[str]  # of its command

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What the result depends on, `stage` among it: a training with the same ones is the same training. It is asked
        for several times and reads every labeled image's mask, so a subclass keeps it (`cached_property`)."""

    @property
    @abstractmethod
    def images(self) -> "Images":
        """That it learns from."""

    @property
    @abstractmethod
    def tags(self) -> tuple[str, ...]:
        """In the tracker."""

    @property
    def input_models(self) -> tuple[str, ...]:
        """Ids of the models that it starts from."""
        return ()

    @abstractmethod
    def prepare(self, device: torch.device) -> Prepared:
        """Loads images and network; sets the seed before the first random number."""


def train(stage: TrainingStage, device: torch.device) -> str:
    """Runs a training, or resumes it where it was interrupted; returns the model's id, which of several processes the
    first one knows.

    Raises:
        InputError: what it needs isn't there or can't be used.
    """
    with exclusive_for_all(_state_file(stage)):
        return _train(stage, device)


def train_if_missing(stage: TrainingStage, device: torch.device) -> str:
    """The id of a model that was trained with exactly these options on the data as they are, or else of a new one."""
    with exclusive(_state_file(stage)):
        return find_trained(stage) or _train(stage, device)


def _state_file(stage: TrainingStage) -> Path:
    return training_state(runs_dir(), fingerprint(identity(stage.parameters)))


def _train(stage: TrainingStage, device: torch.device) -> str:
    state_file = _state_file(stage)
    for folder in (state_file.parent, runs_dir() / "models"):
        check_writable(folder)
    prepared = stage.prepare(device)
    chosen = {"model_id": stage.parameters.get("initial_model_id"), "final_epochs": None}
    with track(f"train {name_result(stage.parameters)}", stage.parameters, stage.tags, module=stage.module,
               chosen=chosen, state=state_file) as experiment:
        for model_id in stage.input_models:
            experiment.use_model(model_id)
        fit(prepared, stage.schedule, device, experiment, state_file)
        if rank():
            return ""
        origin = {**describe_run(), "images": stage.images.origins, "models": list(stage.input_models)}
        model_id = publish(experiment, prepared.network, prepared.training, state_file, origin)
        experiment.note(f"model id: {model_id}")
    if notice := getattr(prepared.network, "notice", ""):
        print(f"{prepared.network.architecture}: {notice}")
    print(f"model id: {model_id}")
    return model_id


def find_trained(stage: TrainingStage) -> str | None:
    """The id of such a model. For an option that there was not when a model was trained stands its default."""
    wanted = identity(stage.parameters)
    defaults = option_defaults(stage)
    for model in find_models(stage=wanted["stage"]):
        if wanted.items() <= {**defaults, **model.parameters}.items():
            print(f"already trained: {model.id}")
            return model.id
    return None


def identity(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters by which a training is found again: an image or a file counts by its bytes, and not by
    its name or by what chose it."""
    return {name: value for name, value in parameters.items()
            if name not in CHOOSE_IMAGES and f"{name}_sha256" not in parameters}


def option_defaults(stage: TrainingStage) -> dict[str, Any]:
    """The defaults of all options of a stage, as `option_values` gives them."""
    options = [getattr(stage, field.name) for field in fields(stage)]
    return option_values(*(type(value)() for value in options if is_options(value)))


@dataclass(frozen=True)
class Images:
    """Those that something was made of; the ground truth counts of the labeled ones alone."""

    data: AnnotatedImages
    labeled: Sequence[str]
    unlabeled: Sequence[str] = ()

    @property
    def origins(self) -> dict[str, str]:
        """Stem -> which image it is, as `AnnotatedImages.origins`, of the labeled ones with a digest of the masks."""
        origins = self.data.origins([*self.labeled, *self.unlabeled])
        return origins | {stem: f"{origins[stem]} {hashlib.sha256(self.data.content(stem)).hexdigest()}"
                          for stem in self.labeled}

    @property
    def parameters(self) -> dict[str, Any]:
        """What a training depends on besides its options: with other data they are other values. `data_sha256` stands
        for the bytes of the images and for the masks."""
        description = self.data.description
        content = description.labels, list(self.labeled), list(self.unlabeled), self.origins
        digest = hashlib.sha256(repr(content).encode())
        return {"dataset": description.name, "input_size": list(description.input_size), "mean": description.mean,
                "std": description.std, "resize_dtype": description.resize_dtype,
                "pos_weight": list(description.pos_weight), "data_sha256": digest.hexdigest()}


def data_parameters(data: AnnotatedImages, labeled: Iterable[str]) -> dict[str, Any]:
    """`Images.parameters` of labeled images."""
    return Images(data, list(labeled)).parameters


def fingerprint(parameters: Mapping) -> str:
    """A short name for a run's parameters: the same ones resume the same unfinished training."""
    text = json.dumps(dict(parameters), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
