"""Files of masks: made where they are missing, opened only for what they were made of.

    path = save_masks(Raw(), model, Selection())
    store = open_saved_masks(Raw(), model)
"""
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from segment_anything.embeddings import PRECISIONS
from segment_anything.refinement.cleaning import SELECTIONS
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.registry import SAM_TYPES
from unet_training.distributed import track, wait_for_all
from unet_training.models import Selection, TrainedModel
from unet_training.pseudo_labels import PSEUDO_LABELS, Mask, PseudoLabels, RecommendedOptions
from utils.errors import InputError
from utils.hdf5 import open_hdf5
from utils.locks import check_writable, exclusive
from utils.mask_shards import merge_masks, note_begin, note_end
from utils.mask_store import REMEDY, MaskStore, MaskWriter
from utils.options import option_values
from utils.paths import mask_file
from utils.random_walk import PRESETS
from utils.ranks import WHOLE, Shard, processes, rank, work_on
from utils.tracking.artifacts import are_uploaded, fetch_file, tag_of
from utils.tracking.models import name_result

RECOMMENDED = RecommendedOptions("recommended").name()  # what names of files of such masks begin with


def save_masks(labels: PseudoLabels, model: TrainedModel, selection: Selection, shard: Shard = WHOLE) -> Path:
    """Makes the masks of the images without labels as far as they are missing; returns their file.

    A shard makes its own; the file is there once `utils.mask_shards.merge_masks` was called, which the first process of
    torchrun does when all have ended.

    Raises:
        InputError: something that they are made with isn't there, or the file there was made with something else.
    """
    labels = labels.prepare(model)
    path = masks_path(labels, model)
    with exclusive(shard.to_lock(path)), work_on(shard):
        if shard == WHOLE and not path.exists():
            _fetch(labels, model)
        writer = MaskWriter(path, model.data.description.labels, labels.attributes(model), shard)
        chosen = selection.choose(model.data, model.num_labeled)
        origins = model.data.origins(model.data.readable(shard.share(chosen)))
        missing = writer.missing(list(origins), origins)
        if missing:
            labels.check()
            check_writable(path.parent)
            _make(labels, model, selection, writer, {stem: origins[stem] for stem in missing})
        if shard != WHOLE:
            note_end(writer, chosen)
    wait_for_all()
    if processes() > 1 and rank() == 0:
        merge_masks(path)
    wait_for_all()
    print(f"{labels.kind} masks{'' if shard == WHOLE else f', shard {shard}'}: {path} ({len(missing)} new)")
    if shard != WHOLE and processes() == 1:
        print(f"when all shards have ended: python -m scripts.merge_masks {path}")
    if labels.notice:
        print(f"refined masks: {labels.notice}")
    return path


def _make(labels: PseudoLabels, model: TrainedModel, selection: Selection, writer: MaskWriter,
          origins: Mapping[str, str]) -> None:
    description = model.data.description
    parameters = {"stage": labels.stage, "dataset": description.name, "model_id": model.id, "masks": labels.variant,
                  **option_values(selection), **labels.parameters}
    chosen = {**labels.arguments(model.data), "num_train_samples": model.num_labeled}
    tags = labels.stage, description.name, tag_of(model.id)
    with track(f"{labels.stage}, {name_result(model.record.parameters)}", parameters, tags,
               kind=labels.task_type, module=labels.made_by, chosen=chosen) as experiment:
        experiment.use_model(model.id)
        estimates: list[np.ndarray] = []
        note_begin(writer)
        with writer:
            writer.write_all(note_estimates(labels.compute(model, list(origins)), estimates), origins)
        if are_uploaded() and writer.shard == WHOLE:
            experiment.artifact(writer.path.stem, writer.path)
        if estimates:
            percent = [100 * mean for mean in class_means(np.stack(estimates))]
            experiment.histogram("Estimated dice in %, per class", percent, description.labels, 0)
            experiment.single_value("Estimated dice in %", float(np.nanmean(percent)))


def _fetch(labels: PseudoLabels, model: TrainedModel) -> bool:
    """Whether another machine had made the masks and they are here now."""
    path = masks_path(labels, model)

    def is_wanted(file: Path) -> bool:
        return not find_difference(MaskStore(file, model.data.description.labels), labels, model)

    return fetch_file(model.id, path.stem, path, is_wanted)


def note_estimates(masks: Iterable[Mask], estimates: list[np.ndarray]) -> Iterator[Mask]:
    """Yields the masks, and adds to `estimates` what comes with them."""
    for mask in masks:
        if mask.estimated_dice is not None:
            estimates.append(mask.estimated_dice)
        yield mask


def masks_path(labels: PseudoLabels, model: TrainedModel) -> Path:
    """Where a model's masks of this kind lie, if they were saved."""
    return mask_file(model.data.derived_dir, model.id, labels.variant)


def open_saved_masks(labels: PseudoLabels, model: TrainedModel) -> MaskStore:
    """A model's saved masks of its data set.

    Raises:
        InputError: there are none, or those are of other labels, another data set or another SAM.
    """
    path = masks_path(labels, model)
    if not path.is_file() and not _fetch(labels, model):
        raise InputError(f"{path}: no such masks; make them with `python -m {labels.made_by}`{list_beside(path)}")
    store = MaskStore(path, model.data.description.labels)
    if difference := find_difference(store, labels, model):
        raise InputError(f"{path}: its masks were made with {difference}; move the file away and save masks anew, or "
                         "give the arguments that it was made with")
    return store


def list_beside(path: Path) -> str:
    """The masks that lie beside a missing file, with the arguments that name them, and the other models that have such
    a file; "" if there is none."""
    beside = [f"`{arguments}`" for other in sorted(path.parent.glob("*.h5")) if (arguments := name_arguments(other))]
    twins = [f"`--model_id {other.parent.name}`" for other in sorted(path.parent.parent.glob(f"*/{path.name}"))]
    return ((f"; this model has those of {', '.join(beside)}" if beside else "")
            + (f"; such masks are there of {', '.join(twins)}" if twins else ""))


def name_arguments(path: Path) -> str:
    """The arguments by which stages find a file of saved masks; "" where it doesn't say."""
    kind = next((kind for kind in PSEUDO_LABELS if path.stem == kind or path.stem.startswith(f"{kind}_")), None)
    if kind == "raw":
        return "--pseudo_label raw"
    if kind == "nnunet":
        return f"--pseudo_label nnunet --nnunet_encoding {path.stem.removeprefix('nnunet_')}"
    if kind == "random_walk":
        return _name_random_walk(path.stem)
    return _name_refined(path) if kind == "sam" else ""


def _name_refined(path: Path) -> str:
    try:
        with open_hdf5(path, REMEDY) as file:
            parameters = dict(json.loads(file.attrs.get("refine_params", "{}")))
    except (OSError, InputError):
        return ""
    recommended = path.stem.startswith(f"{RECOMMENDED}_")
    sam_type = _find_type(path.stem) if recommended else parameters.get("sam_type")
    if sam_type is None:
        return ""
    parts, digest = path.stem.split("_"), parameters.get("sha256", "")[:12]
    given = {"refinement": "recommended" if recommended else None, "sam_type": sam_type,
             "sam_checkpoint": parameters["name"] if digest and digest in parts else None,
             "embeddings": next((each for each in PRECISIONS if each in parts), None),
             "sam_model_id": parameters.get("sam_model_id")}
    chosen = "".join(f" --{field.name} {value}".rstrip() for field in fields(RefinementOptions)
                     if (value := _as_words(parameters.get(field.name, field.default))) != _as_words(field.default))
    return f"--pseudo_label sam{_as_arguments(given)}{chosen}"


def _find_type(stem: str) -> str | None:
    """The SAM of masks that were refined in the recommended way, which only the name of their file says."""
    named = f"{stem.removeprefix(f'{RECOMMENDED}_')}_"
    return max((each for each in SAM_TYPES if named.startswith(f"{each}_")), key=len, default=None)


def _as_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _name_random_walk(stem: str) -> str:
    name = re.fullmatch(f"random_walk_({'|'.join(PRESETS)})(?:_radius(.+?))?(?:_sigma(.+?))?(?:_lambda(.+?))?"
                        f"(_mask_seeds)?_({'|'.join(SELECTIONS)})", stem)
    if name is None:
        return ""
    given = zip(("random_walk", "walk_radius", "sigma", "laplace_lambda", "walk_seeds", "ccl_selection"),
                (*name.groups()[:4], "masks" if name[5] else None, name[6]), strict=True)
    return f"--pseudo_label random_walk{_as_arguments(dict(given))}"


def _as_arguments(given: Mapping[str, str | None]) -> str:
    """Those that have a value."""
    return "".join(f" --{option} {value}" for option, value in given.items() if value)


def choose_stems(store: MaskStore, model: TrainedModel, selection: Selection) -> list[str]:
    """The images to train on: those that the selection means, or, where it says nothing, those unlabeled ones that the
    masks are of, which may have been made for another sample.

    Raises:
        InputError: the selection means others than the masks are of.
    """
    chosen = model.unlabeled_stems(selection)
    absent = [stem for stem in chosen if stem not in store]
    if not absent:
        return chosen
    unlabeled = set(model.unlabeled_stems(replace(selection, split500=False)))
    made = [stem for stem in store.stems if stem in unlabeled]
    if selection != Selection() or not made:
        raise InputError(f"{store.path}: holds no mask of {absent[0]} ({len(absent)} of {len(chosen)} are missing); "
                         "run the stage that wrote it with the same --sample_seed, --split500, --include_annotated and "
                         "--where")
    print(f"{store.path}: has masks of {len(made)} other unlabeled images than the usual sample; these are taken")
    return made


def drop_unsure(stems: Sequence[str], store: MaskStore, share: float) -> list[str]:
    """The images, in their order, without as many as `count_unsure` says: those whose masks have the lowest estimated
    Dice, as the mean over classes. An image without any mask counts as 0."""
    if not share:
        return list(stems)
    estimates = {stem: store.estimated_dice(stem) for stem in stems}
    means = {stem: np.nanmean(estimate) if np.isfinite(estimate).any() else 0.0 for stem, estimate in estimates.items()}
    dropped = set(sorted(stems, key=means.get)[:count_unsure(len(stems), share)])
    return [stem for stem in stems if stem not in dropped]


def count_unsure(images: int, share: float) -> int:
    """How many of so many images are dropped."""
    return int(share * images)


def check_unsure(labels: PseudoLabels, share: float) -> None:
    """Raises an InputError where masks are to be dropped by estimates that they don't have."""
    if share and not labels.estimates:
        raise InputError(f"--drop_unsure {share}: masks of kind {labels.kind} have no estimated Dice to go by; "
                         "leave it out, or take masks that SAM refined")


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
        origins = model.data.origins(stems)
        if all(store.images.get(stem) == origins[stem] for stem in stems) and not find_difference(store, labels, model):
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
