"""Arguments as a task shows them, and the command line that is made of what it shows."""
import argparse
import importlib
import sys
from pathlib import Path

import pytest

from scripts import evaluate
from unet_training import training, training_on_pseudo_labels, training_with_mean_teacher
from utils.cli import run_stage, stage_parser
from utils.options import plain_value
from utils.paths import ROOT
from utils.tracking import arguments, server
from utils.tracking.arguments import describe_arguments, write_command_line

STAGES = ("unet_training.training", "unet_training.training_on_pseudo_labels",
          "unet_training.training_with_mean_teacher", "scripts.evaluate", "scripts.save_segmentations",
          "scripts.save_refined_segmentations", "scripts.save_random_walk_segmentations", "scripts.train_nnunet",
          "scripts.save_nnunet_segmentations", "scripts.add_sam_agreement", "scripts.finetune_sam")


@pytest.fixture(autouse=True)
def nothing_was_run(monkeypatch) -> None:
    """Another test may have run a stage in this process."""
    monkeypatch.setattr(arguments, "_running", [])


def text_of(value) -> str:
    """As a server keeps it."""
    return "" if value is None else str(value)


def parse_again(module, described: dict) -> dict:
    parser = module.get_args_parser()
    shown = {f"{argument.section}/{name}": text_of(argument.value) for name, argument in described.items()}
    parsed = vars(parser.parse_args(write_command_line(parser, shown)))
    return {name: plain_value(value) for name, value in parsed.items() if name != "given"}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_shown_runs_the_same(stage):
    module = importlib.import_module(stage)
    defaults = vars(module.get_args_parser().parse_args([]))
    assert parse_again(module, describe_arguments(stage, {})) == {
        name: plain_value(value) for name, value in defaults.items() if name not in ("given", "training")} | {
        name: "paper" for name in ("training",) if name in defaults}


@pytest.mark.parametrize(("module", "chosen"), [
    (training, {"input_size": [192, 112], "num_train_samples": -1, "lr": 4e-3, "bf16": True, "seed": 7}),
    (training_on_pseudo_labels, {"where": ["cast=1", "age=a b"], "prompt2nd": [], "train_from_scratch": False,
                                 "mixed": "half", "split500": False}),
    (training_with_mean_teacher, {"reliable": 0.9, "reliable_model_id": "0123"}),
    (evaluate, {"surface_tolerance": 2.0, "split": "val", "model_id": "offline-0", "pseudo_label": "sam"})])
def test_chosen_values_run(module, chosen):
    described = describe_arguments(module.__name__, chosen)
    assert {name: parse_again(module, described)[name] for name in chosen} == chosen


def test_arguments_stand_in_groups_with_their_help_and_paths_where_they_are_on_any_machine():
    described = describe_arguments("unet_training.training", {"data_dir": ROOT / "data", "derived_dir": Path("/else")})
    assert described["lr"].section == "training" and described["lr"].help == "initial learning rate of AdamW"
    assert described["seed"].section == "Args" and described["base_width"].section == "initial network"
    assert described["data_dir"].value == "data" and described["derived_dir"].value == "/else"


def test_what_an_agents_task_shows_counts(monkeypatch):
    """Also against a command line that an older task carries; what the stage doesn't know is left."""
    shown = {"training/epochs": "3", "Args/lr": "0.001", "properties/note": "x", "Args/widths": "[1, 2]"}
    monkeypatch.setenv("CLEARML_TASK_ID", "0123")
    monkeypatch.setattr(server, "fetch_arguments", lambda task_id: shown if task_id == "0123" else {})
    monkeypatch.setattr(sys, "argv", ["stage", "--epochs", "6", "--seed", "21"])
    parser, ran = stage_parser("tests.stage", "A stage."), []
    for name, kind in (("--epochs", int), ("--lr", float), ("--seed", int)):
        parser.add_argument(name, type=kind, default=1)
    parser.add_argument("--widths", type=int, nargs="+")
    run_stage(ran.append, parser)
    args: argparse.Namespace = ran[0]
    assert (args.epochs, args.lr, args.seed, args.widths) == (3, 0.001, 21, [1, 2])
