"""Fine-tuning SAM's mask decoder on the labeled images: what a run depends on, all epochs of it, its model."""
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from tqdm import tqdm

from segment_anything.embeddings import load_embedding
from segment_anything.options import Sam
from segment_anything.refinement.refine import RefinementOptions, refine_all
from segment_anything.registry import get_sam_type
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from segment_anything.tuned_decoder import STAGE
from unet_training import trainer
from unet_training.hyper_params import Schedule
from unet_training.models import TrainedModel
from unet_training.sam_decoder.examples import Example, load_examples, shows_object
from unet_training.sam_decoder.prompts import box_errors
from unet_training.sam_decoder.step import TrainableDecoder, train_on
from unet_training.training_stage import data_parameters, find_trained, fingerprint
from utils.dice import image_dice, multilabel_dice
from utils.errors import InputError
from utils.files import read_grey
from utils.locks import check_writable, exclusive
from utils.options import non_negative, option, option_values, positive_float, positive_int
from utils.overlap import map_threaded
from utils.overlay import overlay, to_grey
from utils.paths import training_state
from utils.tracking.experiment import Experiment, start
from utils.tracking.models import name_result
from utils.tracking.offline_runs import runs_dir

VALIDATED = {"box": RefinementOptions(prompt2nd=()),  # one pass each
             "box + mask": RefinementOptions(prompt1st=("box", "mask"), prompt2nd=())}


@dataclass(frozen=True)
class TuningOptions:
    """How a mask decoder is fine-tuned; the optimizer is AdamW."""

    epochs: int = option(6, "times that the decoder is validated, each after --images_per_epoch", type=positive_int)
    images_per_epoch: int = option(48, "labeled images in an epoch, one after the other and over again",
                                   type=positive_int)
    lr: float = option(1e-4, "initial learning rate of AdamW; cosine down to a hundredth", type=positive_float)
    folds: int = option(2, "networks for the prompts, each trained, as the initial one, on the labeled images of the "
                           "other folds; 0: prompts of the ground truth alone", type=non_negative(int))
    augmented: int = option(2, "augmented versions of each labeled image beside itself, each embedded once",
                            type=non_negative(int))


def check_stored(sam: Sam) -> None:
    """Raises an InputError where the SAM's embeddings aren't to be kept."""
    if not sam.stored:
        raise InputError("--embeddings none: fine-tuning a SAM reads each embedding many times, and so keeps it on "
                         "disk; leave out --embeddings none")


@dataclass(frozen=True)
class DecoderTuning:
    """One fine-tuning of a SAM on the labeled images of an initial network.

    Raises:
        InputError: as of `check_stored`.
    """

    options: TuningOptions
    seed: int
    sam: Sam
    initial: TrainedModel

    def __post_init__(self):
        check_stored(self.sam)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on; the initial network says which epoch is best."""
        data, labeled = self.initial.data, self.initial.labeled_stems()
        return {"stage": STAGE, **self.sam.parameters, "sam_checkpoint_sha256": self.sam.identity.sha256,
                **option_values(self.options), "seed": self.seed, "initial_model_id": self.initial.id,
                "num_train_samples": len(labeled), **data_parameters(data, [*labeled, *data.stems("val")])}

    def run_if_missing(self) -> str:
        """The id of a decoder that was made in exactly this way, or else of a new one."""
        with exclusive(self._state_file):
            return find_trained(self) or self._run()

    def run(self) -> str:
        """Fine-tunes, or resumes where it was interrupted; returns the model's id.

        Raises:
            InputError: what it needs isn't there or can't be used.
        """
        with exclusive(self._state_file):
            return self._run()

    @property
    def _state_file(self) -> Path:
        return training_state(runs_dir(), fingerprint(self.parameters))

    def _run(self) -> str:
        self.sam.check_present()
        self._check_shown()
        check_writable(runs_dir() / "models")
        examples = load_examples(self.initial, self.sam, self.options.folds, self.options.augmented, self.seed)
        validation = Validation.load(self.initial, self.sam)
        decoder = TrainableDecoder(self.sam.load_prompt_modules(), self.sam.type_name, self.initial.device)
        dataset = self.initial.data.description.name
        with start(f"train {name_result(self.parameters)} {self.sam.type_name}", self.parameters,
                   (STAGE, self.sam.type_name, dataset), module="scripts.finetune_sam",
                   chosen={"model_id": self.initial.id, "sam_checkpoint": self.sam.checkpoint_argument(
                       self.initial.data.data_dir)}, state=self._state_file) as experiment:
            experiment.use_model(self.initial.id)
            best = self._fit(decoder, examples, validation, experiment)
            model_id = _publish(best, experiment, self.initial.data.description.labels)
            self._state_file.unlink(missing_ok=True)
            experiment.note(f"model id: {model_id}")
        if self.sam.notice:
            print(f"fine-tuned SAM: {self.sam.notice}")
        print(f"model id: {model_id}")
        return model_id

    def _check_shown(self) -> None:
        """Raises an InputError where there is nothing to learn from, or nothing that says which epoch is best."""
        data, labeled = self.initial.data, self.initial.labeled_stems()
        name, validation = data.description.name, data.stems("val")
        if not any(shows_object(data.mask(stem)) for stem in labeled):
            raise InputError(f"data set {name}: none of its labeled images that the initial network was trained on "
                             f"({len(labeled)}) shows a label, so SAM can't learn what one is; annotate one that does, "
                             "or take an initial network of more labeled images")
        if not any(data.mask(stem).any() for stem in validation):
            raise InputError(f"data set {name}: none of its validation images ({len(validation)}) shows a label, so "
                             "nothing says which epoch is best; annotate one that does, or move one to them")

    def _fit(self, decoder: TrainableDecoder, examples: Sequence[Sequence[Example]], validation: "Validation",
             experiment: Experiment) -> nn.Module:
        """The mask decoder after its best epoch: the first of those with the highest Dice on the validation images. SAM
        as it was is epoch 0."""
        state_file = self._state_file
        schedule, device = Schedule(epochs=self.options.epochs, lr=self.options.lr), self.initial.device
        kept = nn.ModuleDict({"trained": decoder.trained, "best": copy.deepcopy(decoder.trained)})
        optimizer = schedule.optimizer(decoder.trained)
        scheduler = schedule.scheduler(optimizer)
        history = trainer.resume(state_file, kept, optimizer, scheduler, device)
        for epoch, record in enumerate([] if experiment.continued else history):
            _report(experiment, record, epoch)
        errors = box_errors(example for versions in examples for example in versions)
        with trainer.Unsaved(state_file, kept, optimizer, scheduler, history, device) as state:
            for epoch in range(len(history), self.options.epochs + 1):
                record = {}
                if epoch:
                    record = {"learning rate": {"lr": optimizer.param_groups[0]["lr"]},
                              "loss": {"train": self._train_epoch(decoder, examples, errors, optimizer, epoch)}}
                    trainer.check_finite(epoch - 1, kept, record["loss"])
                    scheduler.step()
                record["dice per image"] = validation.measure(decoder, epoch, experiment)
                if epoch == 0 or _score(record) > max(map(_score, history)):
                    kept["best"].load_state_dict(decoder.trained.state_dict())
                history.append(record)
                _report(experiment, record, epoch)
                state.note()
        best = max(range(len(history)), key=lambda epoch: _score(history[epoch]))
        print(f"best epoch: {best} of {self.options.epochs}, validation Dice {_describe(history[best])}; of SAM as it "
              f"was {_describe(history[0])}")
        return kept["best"]

    def _train_epoch(self, decoder: TrainableDecoder, examples: Sequence[Sequence[Example]], errors: np.ndarray,
                     optimizer: torch.optim.Optimizer, epoch: int) -> float:
        """One step on a version of each image, in random order, over again until they are enough; the random numbers
        are the epoch's own. Returns the mean loss."""
        rng, count = np.random.default_rng([self.seed, epoch]), self.options.images_per_epoch
        passes = (rng.permutation(len(examples)) for _ in range(-(-count // len(examples))))
        chosen = [examples[index][rng.integers(len(examples[index]))] for index in np.concatenate([*passes])[:count]]
        read = map_threaded(lambda example: load_embedding(example.embedding, self.sam.identity), chosen)
        steps = tqdm(zip(chosen, read, strict=True), f"epoch {epoch} of {self.options.epochs}", len(chosen),
                     unit="image")
        return float(np.nanmean([train_on(example, embedding, decoder, errors, optimizer, rng)
                                 for example, embedding in steps]))


@dataclass(frozen=True)
class Validation:
    """The validation images as the initial network sees them, which wasn't trained on them.

    Attributes:
        stems, probabilities, ground_truth: of each image; the latter two (C, H, W), float32 and bool
    """

    initial: TrainedModel
    sam: Sam
    stems: list[str]
    probabilities: list[np.ndarray]
    ground_truth: list[np.ndarray]

    @classmethod
    def load(cls, initial: TrainedModel, sam: Sam) -> "Validation":
        stems = initial.data.stems("val")
        sam.embed_missing(initial.data, stems, initial.device)
        return cls(initial, sam, stems, [predicted for _, predicted in initial.probabilities(stems)],
                   [initial.data.mask(stem) for stem in stems])

    def measure(self, decoder: TrainableDecoder, epoch: int, experiment: Experiment) -> dict[str, float]:
        """Mean Dice over images, in [0, 1], of the masks that the decoder as it is now makes of each of `VALIDATED`."""
        modules = copy.deepcopy(decoder.modules)
        stored = StoredEmbeddingDecoder(modules, get_sam_type(self.sam.type_name).decoder, self.sam.identity,
                                        decoder.device)
        means = {}
        for name, options in VALIDATED.items():
            embeddings = map_threaded(partial(self.sam.read_embedding, self.initial.data), self.stems)
            masks = [refined.mask for refined in
                     refine_all(zip(self.probabilities, embeddings, strict=True), stored, options)]
            dice = multilabel_dice(*(torch.from_numpy(np.stack(each)) for each in (masks, self.ground_truth)))
            means[name] = image_dice(dice).nanmean().item()
            self._show(experiment, name, masks[0], epoch)
        return means

    def _show(self, experiment: Experiment, name: str, mask: np.ndarray, epoch: int) -> None:
        grey = to_grey(read_grey(self.initial.data.image_path(self.stems[0]), self.sam.grey))
        experiment.image("validation image", name, overlay(grey, mask), epoch)
        if epoch == 0:
            experiment.image("validation image", "ground truth", overlay(grey, self.ground_truth[0]), epoch)


def _score(record: dict[str, dict[str, float]]) -> float:
    """What says which epoch is best."""
    return float(np.mean(list(record["dice per image"].values())))


def _describe(record: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{100 * value:.2f} % ({name})" for name, value in record["dice per image"].items())


def _report(experiment: Experiment, record: dict[str, dict[str, float]], epoch: int) -> None:
    for title, curves in record.items():
        percent = title == "dice per image"
        for series, value in curves.items():
            experiment.scalar("Dice in %" if percent else title, series, 100 * value if percent else value, epoch)


def _publish(mask_decoder: nn.Module, experiment: Experiment, labels: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{STAGE}.safetensors"
        safetensors.torch.save_file({name: value.cpu().contiguous()
                                     for name, value in mask_decoder.state_dict().items()}, weights)
        return experiment.save_model(weights, labels)
