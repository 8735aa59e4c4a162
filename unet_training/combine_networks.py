"""Combines trained networks into one, an ensemble: its logits are the mean of theirs.

    python -m unet_training.combine_networks --model_ids ID ID ID

Networks that were trained alike, but from other seeds, err differently, so that together they draw better pseudo
labels. All stages take the ensemble's id; a final network that isn't trained from scratch starts from the first member.
Prints `model id: <id>` as its last line; what was combined before is found again.

Reads   models by their ids
Writes  a model, known by its id: on the ClearML server, or in runs/ without one
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_training.checkpoint import load_checkpoint
from unet_training.networks.ensemble import Ensemble
from unet_training.trainer import publish
from unet_training.training_stage import fingerprint
from utils.cli import run_stage, stage_parser
from utils.errors import InputError
from utils.locks import exclusive
from utils.paths import training_state
from utils.provenance import describe_run
from utils.tracking.experiment import start
from utils.tracking.models import Model, fetch_model, find_models, name_result
from utils.tracking.offline_runs import runs_dir

STAGE = "ensemble"


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("unet_training.combine_networks", __doc__)
    parser.add_argument("--model_ids", nargs="+", required=True, metavar="ID", help="the networks")
    return parser


def main(args: argparse.Namespace) -> str:
    """Returns the id of the ensemble."""
    model_id = combine_if_missing(args.model_ids)
    print(f"model id: {model_id}")
    return model_id


def combine_if_missing(model_ids: Sequence[str]) -> str:
    """The id of the ensemble of these networks.

    Raises:
        InputError: there is no such network, or they weren't trained on the same images and masks, or they have another
            input or architecture.
    """
    members = [fetch_model(model_id) for model_id in model_ids]
    parameters = describe_ensemble(members)
    state_file = training_state(runs_dir(), fingerprint(parameters))
    with exclusive(state_file):
        return find_ensemble(parameters["model_ids"]) or _combine(members, parameters, state_file)


def find_ensemble(model_ids: Sequence[str]) -> str | None:
    """The id of the ensemble that these networks were combined to before."""
    for model in find_models(stage=STAGE, model_ids=list(model_ids)):
        print(f"already combined: {model.id}")
        return model.id
    return None


def describe_ensemble(members: Sequence[Model]) -> dict[str, Any]:
    """The parameters of an ensemble: its members, and what all of them have in common."""
    first, *others = (member.parameters for member in members)
    shared = {name: value for name, value in first.items()
              if all(other.get(name) == value for other in others)}
    return {**shared, "stage": STAGE, "model_ids": [member.id for member in members]}


def _combine(members: Sequence[Model], parameters: dict[str, Any], state_file: Path) -> str:
    networks, trainings = zip(*(load_checkpoint(member.weights) for member in members), strict=True)
    alike = [(network.architecture, network.config, training, member.parameters.get("data_sha256"))
             for member, network, training in zip(members, networks, trainings, strict=True)]
    for member, of_member in zip(members, alike, strict=True):
        if of_member != alike[0]:
            raise InputError(f"model id {member.id}: differs from {members[0].id} in its architecture, its size or the "
                             "data that it was trained on; name networks that differ in their seeds alone")
    with start(f"combine {name_result(parameters)}", parameters, (STAGE, trainings[0].dataset), kind="data_processing",
               module="unet_training.combine_networks", chosen={"model_ids": parameters["model_ids"]}) as experiment:
        for member in members:
            experiment.use_model(member.id)
        return publish(experiment, Ensemble(networks), trainings[0], state_file,
                       {**describe_run(), "images": {}, "models": parameters["model_ids"]})


if __name__ == "__main__":
    run_stage(main, get_args_parser())
