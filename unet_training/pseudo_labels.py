"""The kinds of pseudo labels: how a mask is made of what the initial network says, and under which name masks lie.

To add a kind, add a class here and enter it in `PSEUDO_LABELS`; every stage then knows it.
"""
import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from segment_anything.embeddings import ImageEmbedding
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.agreement import AgreementOptions, sam_agreement
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.refine import RefinementOptions, refine_all
from segment_anything.stored_decoder import StoredEmbeddingDecoder
from unet_training.models import Selection, TrainedModel
from unet_training.nnunet.nnunet import NNUNetOptions, find_command, unpack
from unet_training.nnunet.training import find_nnunet, train_nnunet_if_missing
from utils.datasets.annotated import AnnotatedImages, read_scaled
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter
from utils.options import add_options, option_values, options_from
from utils.overlap import map_threaded
from utils.paths import mask_file
from utils.random_walk import RandomWalkOptions, random_walk_masks
from utils.tracking.experiment import start
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

    @property
    def notice(self) -> str:
        """What must be said wherever these masks are shown."""
        return ""

    def check(self) -> None:
        """Raises an InputError where what they are made with isn't there."""

    def prepare(self, model: TrainedModel) -> "PseudoLabels":
        """Itself, once what has to be trained first was trained."""
        return self

    def attributes(self, model: TrainedModel) -> dict[str, str]:
        """What the masks depend on beside their name, kept in their file."""
        return {"clearml_model_id": model.id, "dataset": model.data.description.name}

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


class _OfSam(PseudoLabels):
    """What is made with SAM, `self.sam`, of the network's probabilities and the image's embedding."""

    sam: Sam

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
        return asdict(self.sam.identity)

    def inputs(self, model: TrainedModel, stems: Sequence[str]
               ) -> tuple[StoredEmbeddingDecoder, Iterator[tuple[str, np.ndarray, ImageEmbedding]]]:
        """SAM's decoder and, of each image, (stem, probabilities, embedding); computes missing embeddings first, and
        reads the next one while the caller works."""
        self.sam.embed_missing(model.data, stems, model.device)
        decoder = self.sam.load_decoder(model.device)
        embeddings = map_threaded(partial(self.sam.read_embedding, model.data), stems)
        predicted = model.probabilities(stems)
        return decoder, ((*prediction, embedding) for prediction, embedding in zip(predicted, embeddings, strict=True))


@dataclass(frozen=True)
class SamRefined(_OfSam):
    """The network's masks, refined by SAM."""

    kind, stage, made_by = "sam", "refine", "scripts.save_refined_segmentations"
    sam: Sam
    options: RefinementOptions

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_options(parser.add_argument_group("SAM"), SamOptions)
        add_options(parser.add_argument_group("refinement"), RefinementOptions)

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "SamRefined":
        return cls(Sam.choose(options_from(SamOptions, args), data), options_from(RefinementOptions, args))

    @property
    def variant(self) -> str:
        return f"{self.options.name()}_{self.sam.name}"

    @property
    def title(self) -> str:
        return f"SAM type {self.sam.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.sam.parameters, **option_values(self.options)}

    def refine_params(self) -> dict[str, Any]:
        return {**asdict(self.options), "sam_type": self.sam.type_name, **super().refine_params()}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        decoder, images = self.inputs(model, stems)
        refined = refine_all((image for _, *image in images), decoder, self.options)
        for stem, result in zip(stems, refined, strict=True):
            yield Mask(stem, result.mask, result.estimated_dice)


@dataclass(frozen=True)
class RandomWalk(PseudoLabels):
    """The network's masks, refined by a random walk on the image."""

    kind, stage, made_by = "random_walk", "random_walk", "scripts.save_random_walk_segmentations"
    options: RandomWalkOptions
    ccl_selection: str

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("random walk")
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
        add_options(parser.add_argument_group("nnU-Net"), NNUNetOptions)

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
    sam: Sam
    options: AgreementOptions

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("SAM")
        add_options(group, SamOptions)
        add_options(group, AgreementOptions)

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages) -> "Agreement":
        return cls(Sam.choose(options_from(SamOptions, args), data), options_from(AgreementOptions, args))

    @property
    def variant(self) -> str:
        return f"{self.options.name()}_{self.sam.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.sam.parameters, **option_values(self.options)}

    def compute(self, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
        decoder, images = self.inputs(model, stems)
        for stem, probabilities, embedding in images:
            agreement = sam_agreement(probabilities, embedding, decoder, self.options)
            yield Mask(stem, probabilities > 0.5, agreement)


PSEUDO_LABELS: dict[str, type[PseudoLabels]] = {labels.kind: labels for labels in
                                                (Raw, SamRefined, RandomWalk, NNUNetMasks)}


def add_pseudo_label_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--pseudo_label", choices=tuple(PSEUDO_LABELS), default=default,
                        help="the U-Net's masks as they are, refined by SAM, or by a random walk; or nnU-Net's masks")


def add_pseudo_label_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of all kinds."""
    for labels in PSEUDO_LABELS.values():
        labels.add_arguments(parser)


def save_masks(labels: PseudoLabels, model: TrainedModel, selection: Selection) -> Path:
    """Makes the masks of the images without labels as far as they are missing; returns their file.

    Raises:
        InputError: something that they are made with isn't there, or the file there was made with something else.
    """
    labels = labels.prepare(model)
    path = masks_path(labels, model)
    names = model.data.description.labels
    writer = MaskWriter(path, names, labels.attributes(model))
    missing = writer.missing(model.unlabeled_stems(selection))
    if missing:
        labels.check()
        dataset = model.data.description.name
        parameters = {"stage": labels.stage, "dataset": dataset, "model_id": model.id, "masks": labels.variant,
                      **option_values(selection), **labels.parameters}
        with start(labels.made_by.partition(".")[2], parameters, (labels.stage, dataset)) as experiment:
            experiment.use_model(model.id)
            estimates: list[np.ndarray] = []
            with writer:
                writer.write_all(note_estimates(labels.compute(model, missing), estimates))
            if estimates:
                experiment.histogram("estimated dice per class", class_means(np.stack(estimates)), names, 0)
    print(f"{labels.kind} masks: {path} ({len(missing)} new)")
    if labels.notice:
        print(f"refined masks: {labels.notice}")
    return path


def note_estimates(masks: Iterable[Mask], estimates: list[np.ndarray]) -> Iterator[Mask]:
    """Yields the masks, and adds to `estimates` what comes with them."""
    for mask in masks:
        if mask.estimated_dice is not None:
            estimates.append(mask.estimated_dice)
        yield mask


def masks_path(labels: PseudoLabels, model: TrainedModel) -> Path:
    """Where a model's masks of this kind lie, if they were saved."""
    return mask_file(model.data.data_dir, model.id, labels.variant)


def open_saved_masks(labels: PseudoLabels, model: TrainedModel) -> MaskStore:
    """A model's saved masks of its data set.

    Raises:
        InputError: there are none, or those are of other labels, another data set or another SAM.
    """
    path = masks_path(labels, model)
    if not path.is_file():
        raise InputError(f"{path}: no such masks; make them with `python -m {labels.made_by}`")
    store = MaskStore(path, model.data.description.labels)
    if difference := find_difference(store, labels, model):
        raise InputError(f"{path}: its masks were made with {difference}; move the file away and save masks anew, or "
                         "give the arguments that it was made with")
    return store


def find_difference(store: MaskStore, labels: PseudoLabels, model: TrainedModel) -> str:
    """With what saved masks were made that these aren't; "" if it is the same."""
    for name, value in labels.attributes(model).items():
        if store.attributes.get(name) != value:
            return f"{name} = {store.attributes.get(name)}, not {value}"
    return ""


def masks_of(labels: PseudoLabels, model: TrainedModel, stems: Sequence[str]) -> Iterator[Mask]:
    """Yields the saved masks of these images if they are all there and made in this way, else computes them."""
    path = masks_path(labels, model)
    if path.exists():
        store = MaskStore(path, model.data.description.labels)
        if all(stem in store for stem in stems) and not find_difference(store, labels, model):
            yield from (Mask(stem, store.mask(stem), store.estimated_dice(stem)) for stem in stems)
            return
    yield from labels.compute(model, stems)


def mean_estimates(store: MaskStore, stems: Sequence[str]) -> np.ndarray:
    """The mean of each image's estimates over its classes, float64, (N,); NaN for an image without any."""
    return np.array(class_means(np.stack([store.estimated_dice(stem) for stem in stems]).T))


def class_means(estimates: np.ndarray) -> list[float]:
    """Mean over images (N, C) per class, NaN for a class that was never estimated."""
    counts = (~np.isnan(estimates)).sum(axis=0)
    return np.where(counts > 0, np.nansum(estimates, axis=0) / np.maximum(counts, 1), np.nan).tolist()
