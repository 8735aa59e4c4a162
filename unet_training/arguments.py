"""Arguments that several stages share, and the model that they mean."""
import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import PRECISIONS
from segment_anything.refinement.refine import RefinementOptions, options_from
from segment_anything.registry import SAM_TYPES, check_present, default_checkpoint
from unet_training.checkpoint import Network, Training, load_checkpoint
from unet_training.networks.lraspp import LrasppOnSam
from unet_training.networks.u_net import UNet
from unet_training.nnunet.label_tables import ENCODINGS
from unet_training.nnunet.nnunet import EPOCHS, ITERATIONS
from utils.datasets.annotated import AnnotatedImages, open_dataset
from utils.datasets.description import DATASET_NAMES, OWN
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.options import plain_value, positive_int
from utils.paths import DATA, mask_file
from utils.random_walk import SETTINGS
from utils.tracking.experiment import Model, fetch_model, find_models
from utils.tracking.offline_runs import describe

NOT_OF_A_RESULT = {"gpu_id", "infer_batch_size"}
SAM_ARGUMENTS = {"sam_type", "sam_checkpoint", "embeddings"}
OF_PSEUDO_LABELS = {  # which arguments describe them
    "sam": {*SAM_ARGUMENTS, *(field.name for field in dataclasses.fields(RefinementOptions))},
    "random_walk": {"random_walk", "ccl_selection"},
    "nnunet": {"nnunet_encoding", "nnunet_epochs", "nnunet_iterations"},
}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="graz", metavar="NAME",
                        help=f"{', '.join(DATASET_NAMES)}, or your own, described by <data_dir>/NAME/{OWN}")
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of all data sets")
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    parser.add_argument("--seed", type=int, default=42, help="seed of all random numbers")


def add_unlabeled_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split500", action=argparse.BooleanOptionalAction, default=True,
                        help="only the list of 500 unlabeled images, not all of them")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    add_unlabeled_arguments(parser)
    parser.add_argument("--infer_batch_size", type=positive_int, default=16, help="images the U-Net sees at once")


def add_sam_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder_arguments(parser)
    parser.add_argument("--embeddings", choices=PRECISIONS, default="float32",
                        help="float16: half the size on disk; bf16: also computed in bfloat16 (not vit_t), much faster "
                             "on a GPU and on some processors")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sam_type", choices=tuple(SAM_TYPES),
                        help="which SAM (left out: vit_h, or demo for the sample data)")
    parser.add_argument("--sam_checkpoint", type=Path,
                        help="its weights (left out: the file of the public name in <data_dir>/sam_checkpoints)")


def resolve_sam(args: argparse.Namespace, data: AnnotatedImages) -> tuple[str, Path]:
    """SAM's type and weights file, as the arguments or the data set say."""
    sam_type = args.sam_type or data.description.sam_type
    return sam_type, args.sam_checkpoint or default_checkpoint(sam_type, args.data_dir)


def sam_name(args: argparse.Namespace, data: AnnotatedImages) -> str:
    """SAM's type, and what its embeddings have of their own: their precision, and the maximum grey value."""
    sam_type, _ = resolve_sam(args, data)
    max_grey_value = data.description.max_grey_value
    return (sam_type + (f"_{args.embeddings}" if args.embeddings != "float32" else "")
            + (f"_max{max_grey_value}" if max_grey_value else ""))


def print_sam_notice(args: argparse.Namespace, data: AnnotatedImages) -> None:
    """Prints what must be said of results of this type of SAM, if anything."""
    if notice := SAM_TYPES[resolve_sam(args, data)[0]].notice:
        print(f"refined masks: {notice}")


def print_model_notice(model: Network) -> None:
    """Prints what must be said of results of the SAM that a model stands on, if anything."""
    if isinstance(model, LrasppOnSam) and model.notice:
        print(f"{model.architecture}: {model.notice}")


def refined_kind(args: argparse.Namespace, data: AnnotatedImages) -> str:
    """Names the refinement that the arguments describe; different ones have different names."""
    return f"{options_from(args).name()}_{sam_name(args, data)}"


def agreement_kind(args: argparse.Namespace, data: AnnotatedImages) -> str:
    """Names the U-Net's masks with the agreement of the SAM that the arguments describe."""
    return f"agreement_{sam_name(args, data)}"


def add_random_walk_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random_walk", choices=tuple(SETTINGS), default="released",
                        help="settings of the random walk: the released code's, at which it never acts, or others")


def random_walk_kind(args: argparse.Namespace) -> str:
    """Names the random walk's refinement that the arguments describe."""
    return f"random_walk_{args.random_walk}_{args.ccl_selection}"


def add_nnunet_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nnunet_encoding", choices=tuple(ENCODINGS), default="combinations",
                        help="labels that overlap: a class for each combination, or an nnU-Net for each group without")
    parser.add_argument("--nnunet_epochs", type=positive_int, default=EPOCHS, help="epochs of nnU-Net")
    parser.add_argument("--nnunet_iterations", type=positive_int, default=ITERATIONS, help="batches in one of them")


def nnunet_kind(args: argparse.Namespace) -> str:
    """Names nnU-Net's masks, and the length of its training unless that is nnU-Net's own."""
    length = (args.nnunet_epochs, args.nnunet_iterations)
    return f"nnunet_{args.nnunet_encoding}" + ("" if length == (EPOCHS, ITERATIONS) else "_{}x{}".format(*length))


def add_pseudo_label_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--pseudo_label", choices=("raw", "sam", "random_walk", "nnunet"), default=default,
                        help="the U-Net's masks as they are, refined by SAM, or by a random walk; or nnU-Net's masks")
    add_random_walk_argument(parser)
    add_nnunet_arguments(parser)


def pseudo_label_kind(args: argparse.Namespace, data: AnnotatedImages) -> str:
    """Names the masks that `--pseudo_label` and the options of their refinement mean."""
    if args.pseudo_label == "sam":
        return refined_kind(args, data)
    if args.pseudo_label == "nnunet":
        return nnunet_kind(args)
    return "raw" if args.pseudo_label == "raw" else random_walk_kind(args)


def task_parameters(args: argparse.Namespace, stage: str, **more: object) -> dict:
    """What the tracker keeps of a run: its stage, its arguments and what they resolved to.

    Arguments without effect on the result are left out, so that a model is found again whatever they are.
    """
    values = plain_values(args)
    idle = NOT_OF_A_RESULT | _without_effect(values)
    return {**{name: value for name, value in values.items() if name not in idle}, "stage": stage, **more}


def _without_effect(values: Mapping[str, object]) -> set[str]:
    """Those that describe a SAM or pseudo labels which these arguments don't ask for."""
    if values.get("architecture") == UNet.architecture:
        return {"architecture", *SAM_ARGUMENTS}
    if "reliable" in values and values["reliable"] is None:
        return set(SAM_ARGUMENTS)
    if "pseudo_label" in values:
        return set().union(*OF_PSEUDO_LABELS.values()) - OF_PSEUDO_LABELS.get(values["pseudo_label"], set())
    return set()


def data_parameters(data: AnnotatedImages, labeled: Sequence[str], unlabeled: Sequence[str] = ()) -> dict:
    """What a training depends on besides its arguments: with other data they are other values.

    `images` stands for the images, by their names and the sizes of their files, and for the labeled ones' masks.
    """
    description, digest = data.description, hashlib.sha256()
    for stem in (*labeled, *unlabeled):
        digest.update(f"{stem} {data.image_path(stem).stat().st_size}\n".encode())
    for stem in labeled:
        digest.update(np.packbits(data.mask(stem)))
    return {"input_size": list(description.input_size), "mean": description.mean, "std": description.std,
            "pos_weight": list(description.pos_weight), "images": digest.hexdigest()[:16]}


def plain_values(args: argparse.Namespace) -> dict:
    """The arguments, paths as text and in full."""
    return {name: plain_value(value) for name, value in vars(args).items()}


def saved_masks(args: argparse.Namespace, model_id: str, kind: str, data: AnnotatedImages) -> MaskStore:
    """A model's saved masks of this data set.

    Raises:
        InputError: there are none, or those are of other labels, another data set or another SAM.
    """
    store = MaskStore(mask_file(args.data_dir, model_id, kind), data.description.labels)
    if other := made_of(store, args, data):
        raise InputError(f"{store.path}: its masks were made {other}; move the file away and save masks anew, or give "
                         "the arguments that it was made with")
    return store


def made_of(store: MaskStore, args: argparse.Namespace, data: AnnotatedImages) -> str:
    """What saved masks were made of instead of what the arguments name; "" if it is the same."""
    if (dataset := store.attributes.get("dataset")) != args.dataset:
        return f"of the data set {dataset}, not {args.dataset}"
    sam_type, checkpoint = resolve_sam(args, data)
    if "refine_params" in store.attributes and (args.sam_checkpoint or checkpoint.is_file()):
        check_present(sam_type, checkpoint)
        used, asked = json.loads(store.attributes["refine_params"]), identify(checkpoint)
        if used["sha256"] != asked.sha256:
            return f"with the checkpoint {CheckpointId(used['name'], used['sha256'])}, not {asked}"
    return ""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_id", help="the U-Net (left out: the newest of the data set and --num_train_samples)")
    parser.add_argument("--num_train_samples", type=int, default=43,
                        help="labeled images that the initial U-Net was trained on")


def choose_model(args: argparse.Namespace, stage: str | None = "initial") -> Model:
    """The model that `--model_id` names, or the newest of that stage, the data set and `--num_train_samples`.

    Without a stage there must be exactly one.

    Raises:
        InputError: no model is meant beyond doubt; the message lists the ids there are.
    """
    if args.model_id:
        return fetch_model(args.model_id)
    wanted = {"dataset": args.dataset, "num_train_samples": args.num_train_samples}
    models = find_models(**wanted, stage=stage) if stage else find_models(**wanted)
    models = [model for model in models if model.parameters.get("stage") != "nnunet"]  # which has commands of its own
    if len(models) == 1 or (models and stage):
        return models[0]
    problem = "several models" if models else f"no {stage or 'trained'} model"
    known = describe(models or find_models())
    raise InputError(f"{problem} of data set {args.dataset} with {args.num_train_samples} labeled images; name one "
                     f"with --model_id or train one with unet_training.training. There are: {known}")


def load_model_and_data(args: argparse.Namespace, device: torch.device,
                        stage: str | None = "initial") -> tuple[Model, Network, Training, AnnotatedImages]:
    """The chosen model, rebuilt, and the data set as the model takes it: its input size, mean and std are the model's.

    Raises:
        InputError: no such model, or its labels are not the data set's, or it is an nnU-Net.
    """
    model = choose_model(args, stage)
    if model.parameters.get("stage") == "nnunet":
        raise InputError(f"model id {model.id}: is an nnU-Net; name the initial model that it belongs to, "
                         f"{model.parameters['initial_model_id']}, and --pseudo_label nnunet where its masks are meant")
    u_net, training = load_checkpoint(model.weights, device)
    data = open_dataset(args.dataset, args.data_dir, training.input_size)
    training.check_labels(data.description.labels, f"data set {args.dataset}")
    data.description = dataclasses.replace(data.description, mean=training.mean, std=training.std)
    return model, u_net, training, data


def unlabeled_stems(args: argparse.Namespace, model: Model, data: AnnotatedImages) -> list[str]:
    """The images without labels, as seen from the model: those it was not trained on."""
    return data.unlabeled_stems(num_train_samples(args, model), args.split500, args.seed)


def labeled_stems(args: argparse.Namespace, model: Model, data: AnnotatedImages) -> list[str]:
    """The images that the model was trained on."""
    return data.stems("train", num_train_samples(args, model))


def num_train_samples(args: argparse.Namespace, model: Model) -> int:
    """How many images are labeled, as seen from the model."""
    return model.parameters.get("num_train_samples", args.num_train_samples)
