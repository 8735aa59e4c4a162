"""The kinds of pseudo labels: how a mask is made of what the initial network says, and under which name masks lie.

To add a kind, add a class here and enter it in `PSEUDO_LABELS`; every stage then knows it.
"""
import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from segment_anything.embeddings import ImageEmbedding
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.agreement import AgreementOptions, sam_agreement
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.recommended import Calibration, calibrate, refine_all_calibrated
from segment_anything.refinement.refine import RefinementOptions, refine_all
from segment_anything.registry import get_sam_type
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from unet_training.models import TrainedModel
from unet_training.nnunet.nnunet import NNUNetOptions, find_command, unpack
from unet_training.nnunet.training import find_nnunet, train_nnunet_if_missing
from unet_training.training_stage import data_parameters
from utils.datasets.annotated import AnnotatedImages, read_scaled
from utils.errors import InputError, say_once
from utils.locks import exclusive
from utils.options import add_options, argument_group, option, option_values, options_from
from utils.paths import mask_file
from utils.random_walk import RandomWalkOptions, random_walk_masks
from utils.records import find_record, write_record
from utils.tracking.models import Model, fetch_model


class Mask(NamedTuple):
    """One image's mask.

    Attributes:
        stem: of the image
        mask: bool, (C, H, W), at the network's input size
        estimated_dice: float64, (C,), NaN where none was estimated; None where the kind estimates nothing
    """

    stem: str
    mask: np.ndarray
    estimated_dice: np.ndarray | None = None


class PseudoLabels(ABC):
    """One kind of pseudo labels with its options."""

    kind: ClassVar[str]  # in `--pseudo_label`
    stage: ClassVar[str]  # that makes them, in the tracker
    made_by: ClassVar[str]  # the command that saves them
    task_type: ClassVar[str] = "inference"  # of ClearML's types, that of the task that saves them
    estimates: ClassVar[bool] = False  # whether each mask has an estimated Dice

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Those that `from_args` reads."""

    @classmethod
    @abstractmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "PseudoLabels":
        """Of its arguments. Raises InputError where one has no meaning."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """Names the file of masks; other options that act have another name."""

    @property
    def title(self) -> str:
        """For people."""
        return self.variant

    @property
    def parameters(self) -> dict[str, Any]:
        """The options, as the tracker takes them."""
        return {}

    def arguments(self, data: AnnotatedImages) -> dict[str, Any]:
        """The options, as a command takes them."""
        return {"pseudo_label": self.kind, "refinement": "paper", **self.parameters}

    @property
    def notice(self) -> str:
        """What must be said wherever these masks are shown."""
        return ""

    def check(self) -> None:
        """Raises an InputError where what they are made with isn't there."""

    def prepare(self, model: TrainedModel) -> "PseudoLabels":
        """Itself, once what has to be trained first was trained."""
        return self

    def decided_by(self, model: TrainedModel) -> dict[str, str]:
        """Digests of the data that the masks depend on beside their images."""
        return {}

    def attributes(self, model: TrainedModel) -> dict[str, str]:
        """What the masks depend on beside their name, kept in their file."""
        return {"clearml_model_id": model.id, "dataset": model.data.description.name, **self.decided_by(model)}

    @abstractmethod
    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        """Makes the masks of these images, in their order."""


class Raw(PseudoLabels):
    """The network's masks as they are."""

    kind, stage, made_by = "raw", "predict", "scripts.save_segmentations"
    variant = "raw"
    title = "no refinement"

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "Raw":
        return cls()

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        for stem, probabilities in model.probabilities(stems):
            yield Mask(stem, probabilities > 0.5)


@dataclass(frozen=True)
class _OfSam(PseudoLabels):
    """What is made with SAM, of the network's probabilities and the image's embedding; `options` are of the class
    `options_type`."""

    sam: Sam
    options: Any
    options_type: ClassVar[type]
    estimates: ClassVar[bool] = True

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> Self:
        return cls(Sam.choose(options_from(SamOptions, args), data), options_from(cls.options_type, args))

    @property
    def variant(self) -> str:
        return f"{self.options.name()}_{self.sam.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.sam.parameters, **option_values(self.options)}

    def arguments(self, data: AnnotatedImages) -> dict[str, Any]:
        return {**super().arguments(data), "sam_checkpoint": self.sam.checkpoint_argument(data.data_dir)}

    @property
    def notice(self) -> str:
        return self.sam.notice

    def check(self) -> None:
        self.sam.check_present()

    def attributes(self, model: TrainedModel) -> dict[str, str]:
        own = super().attributes(model)
        if self.sam.checkpoint.is_file():  # masks can be read where SAM's weights aren't
            own["refine_params"] = json.dumps(self.refine_params())
        return own

    def refine_params(self) -> dict[str, Any]:
        """What the masks depend on: a file of masks is never continued with anything else."""
        tuned = {"sam_model_id": self.sam.tuned.model_id} if self.sam.tuned else {}
        return {**asdict(self.sam.identity), **tuned}

    def inputs(self, model: TrainedModel, stems: Sequence[str]
               ) -> tuple[StoredEmbeddingDecoder, Iterator[tuple[str, np.ndarray, ImageEmbedding]]]:
        """SAM's decoder and, of each image, (stem, probabilities, embedding) as of `Sam.embeddings`."""
        embeddings = self.sam.embeddings(model.data, stems, model.device)
        decoder = self.sam.load_decoder(model.device)
        predicted = model.probabilities(stems)
        return decoder, ((*prediction, embedding) for prediction, embedding in zip(predicted, embeddings, strict=True))


@dataclass(frozen=True)
class SamRefined(_OfSam):
    """The network's masks, refined by SAM."""

    kind, stage, made_by = "sam", "refine", "scripts.save_refined_segmentations"
    options: RefinementOptions
    options_type = RefinementOptions

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_options(argument_group(parser, "SAM"), SamOptions)
        group = argument_group(parser, "refinement")
        add_options(group, RecommendedOptions)
        add_options(group, RefinementOptions)

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "SamRefined | Recommended":
        chosen = options_from(RecommendedOptions, args)
        if chosen.refinement == "paper":
            chosen_prompts = {"prompt1st", "prompt2nd"} & set(getattr(args, "given", ()))
            return super().from_args(args, data).with_own_prompts(bool(chosen_prompts))
        if options_from(RefinementOptions, args) != RefinementOptions():
            raise InputError("--refinement recommended: chooses prompts and component by the validation images; leave "
                             "out --prompt1st, --prompt2nd, --ccl_selection and --morphology...")
        return Recommended.from_args(args, data)

    def with_own_prompts(self, chosen: bool) -> Self:
        """With the prompts of a SAM that was trained with boxes alone, unless prompts were `chosen`."""
        prompts, usual = get_sam_type(self.sam.type_name).prompts, RefinementOptions()
        if chosen or not prompts or (self.options.prompt1st, self.options.prompt2nd) != (usual.prompt1st,
                                                                                          usual.prompt2nd):
            return self
        first, second = prompts
        say_once(f"--sam_type {self.sam.type_name}: was trained with {' '.join(first)} alone, so that is its prompt; "
                 "--prompt1st and --prompt2nd say otherwise")
        return replace(self, options=replace(self.options, prompt1st=first, prompt2nd=second))

    @property
    def title(self) -> str:
        return f"SAM type {self.sam.name}"

    def refine_params(self) -> dict[str, Any]:
        return {**asdict(self.options), "sam_type": self.sam.type_name, **super().refine_params()}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        decoder, images = self.inputs(model, stems)
        refined = refine_all((image for _, *image in images), decoder, self.options)
        for stem, result in zip(stems, refined, strict=True):
            yield Mask(stem, result.mask, result.estimated_dice)


@dataclass(frozen=True)
class RecommendedOptions:
    """Whose way to refine."""

    refinement: str = option(
        "paper", "recommended: the labeled validation images say where to cut the U-Net's probabilities, what to ask "
        "SAM, and how far to trust it, per class", choices=("paper", "recommended"))

    def name(self) -> str:
        return "sam_recommended"


@dataclass(frozen=True)
class Recommended(_OfSam):
    """What the network and SAM say together, calibrated on the labeled validation images."""

    kind, stage, made_by = "sam", "refine", "scripts.save_refined_segmentations"
    options: RecommendedOptions
    options_type = RecommendedOptions

    @property
    def title(self) -> str:
        return f"recommended refinement, SAM type {self.sam.name}"

    def arguments(self, data: AnnotatedImages) -> dict[str, Any]:
        """Prompts and component can't be chosen beside it."""
        return {**super().arguments(data), **option_values(RefinementOptions())}

    def decided_by(self, model: TrainedModel) -> dict[str, str]:
        return {"validation": data_parameters(model.data, model.data.stems("val"))["data_sha256"]}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        calibration = self.calibrate(model)
        decoder, images = self.inputs(model, stems)
        refined = refine_all_calibrated((image for _, *image in images), decoder, calibration)
        for stem, result in zip(stems, refined, strict=True):
            yield Mask(stem, result.mask, result.estimated_dice)

    def calibrate(self, model: TrainedModel) -> Calibration:
        """What the validation images say, read if it was asked before of the same images, network and SAM."""
        path = mask_file(model.data.derived_dir, model.id, self.variant).with_suffix(".json")
        with exclusive(path):  # of several shards the first one asks
            return self._calibrate(model, path)

    def _calibrate(self, model: TrainedModel, path: Path) -> Calibration:
        stems, attributes = model.data.stems("val"), self.attributes(model)
        known = find_record(path, _KnownCalibration)
        if known and known.attributes == attributes:
            return known.calibration
        calibration = self.ask(model, stems)
        before, after = (100 * dice for dice in calibration.dice)
        print(f"recommended refinement, chosen on {len(stems)} validation images: their Dice {before:.2f} % of the "
              f"U-Net's masks, {after:.2f} % of the refined ones")
        write_record(path, _KnownCalibration(attributes, calibration))
        return calibration

    def ask(self, model: TrainedModel, stems: Sequence[str]) -> Calibration:
        """What labeled images say that the network wasn't trained on; kept nowhere."""
        def predict() -> Iterator[np.ndarray]:
            return (probabilities for _, probabilities in model.probabilities(stems))

        def images() -> Iterator[tuple[np.ndarray, ImageEmbedding]]:
            return (image for _, *image in self.inputs(model, stems)[1])

        return calibrate(predict, images, [model.data.mask(stem) for stem in stems],
                         self.sam.load_decoder(model.device))


@dataclass(frozen=True)
class _KnownCalibration:
    """With what it depends on."""

    attributes: dict[str, str]
    calibration: Calibration


@dataclass(frozen=True)
class RandomWalk(PseudoLabels):
    """The network's masks, refined by a random walk on the image."""

    kind, stage, made_by = "random_walk", "random_walk", "scripts.save_random_walk_segmentations"
    task_type = "data_processing"
    options: RandomWalkOptions
    ccl_selection: str

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = argument_group(parser, "random walk")
        add_options(group, RandomWalkOptions)
        add_options(group, RefinementOptions, only=("ccl_selection",))

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "RandomWalk":
        return cls(options_from(RandomWalkOptions, args), args.ccl_selection)

    @property
    def variant(self) -> str:
        return f"{self.options.name()}_{self.ccl_selection}"

    @property
    def title(self) -> str:
        return f"random walk ({self.options.random_walk})"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**option_values(self.options), "ccl_selection": self.ccl_selection}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        for stem, probabilities in model.probabilities(stems):
            grey = 255 * read_scaled(model.data.image_path(stem), model.data.description)
            cleaned = clean_masks(probabilities, self.ccl_selection)
            yield Mask(stem, random_walk_masks(grey, cleaned, self.options, probabilities))


@dataclass(frozen=True)
class NNUNetMasks(PseudoLabels):
    """What nnU-Net makes of the images; it was trained on the labeled ones."""

    kind, stage, made_by = "nnunet", "predict_nnunet", "scripts.save_nnunet_segmentations"
    options: NNUNetOptions
    seed: int
    nnunet_model_id: str | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_options(argument_group(parser, "nnU-Net"), NNUNetOptions)

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "NNUNetMasks":
        return cls(options_from(NNUNetOptions, args), args.seed, getattr(args, "nnunet_model_id", None))

    @property
    def variant(self) -> str:
        return self.options.variant

    @property
    def title(self) -> str:
        return f"nnU-Net ({self.options.nnunet_encoding})"

    @property
    def parameters(self) -> dict[str, Any]:
        return option_values(self.options)

    def check(self) -> None:
        find_command()

    def prepare(self, model: TrainedModel) -> "NNUNetMasks":
        record = self._choose_record() or train_nnunet_if_missing(self.options, self.seed, model)
        return replace(self, options=NNUNetOptions.of(record), nnunet_model_id=record.id)

    def attributes(self, model: TrainedModel) -> dict[str, str]:
        return {**super().attributes(model), "nnunet_model_id": self._record(model).id}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        with unpack(self._record(model).weights, model.data, model.device) as network:
            for stem, mask in network.predict(stems):
                yield Mask(stem, mask)

    def _record(self, model: TrainedModel) -> Model:
        """The nnU-Net's. Raises InputError if there is none of these options."""
        return self._choose_record() or find_nnunet(self.options, self.seed, model)

    def _choose_record(self) -> Model | None:
        return fetch_model(self.nnunet_model_id) if self.nnunet_model_id else None


@dataclass(frozen=True)
class Agreement(_OfSam):
    """The network's masks as they are, with how far SAM agrees with each of them in the place of an estimate."""

    kind, stage, made_by = "agreement", "agreement", "scripts.add_sam_agreement"
    options: AgreementOptions
    options_type = AgreementOptions

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = argument_group(parser, "SAM")
        add_options(group, SamOptions)
        add_options(group, AgreementOptions)

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        decoder, images = self.inputs(model, stems)
        for stem, probabilities, embedding in images:
            agreement = sam_agreement(probabilities, embedding, decoder, self.options)
            yield Mask(stem, probabilities > 0.5, agreement)


PSEUDO_LABELS: dict[str, type[PseudoLabels]] = {labels.kind: labels for labels in
                                                (Raw, SamRefined, RandomWalk, NNUNetMasks)}


def add_pseudo_label_argument(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--pseudo_label", choices=tuple(PSEUDO_LABELS), default=default,
                        help="the U-Net's masks as they are, refined by SAM, or by a random walk; or nnU-Net's masks")


def add_pseudo_label_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of all kinds."""
    for labels in PSEUDO_LABELS.values():
        labels.add_arguments(parser)
