"""The command that an agent runs of a step means what the pipeline does in its own process."""
from dataclasses import replace
from importlib import import_module

import pytest

from scripts import run_pipeline
from scripts.pipeline_steps import Steps, Way
from scripts.study.methods import Setting
from tests.stage_runs import SMALL, N
from unet_training.hyper_params import FinalOptions, LossOptions, Schedule
from unet_training.models import Selection
from unet_training.networks.registry import Architecture
from unet_training.pseudo_labels import PSEUDO_LABELS
from utils.errors import InputError
from utils.options import options_from
from utils.tracking import queued_steps
from utils.tracking.arguments import describe_arguments, note_command, write_command_line

PREPARED = ["--sam_type", "demo", "--ccl_selection", "largest", "--morphology", "paper", "--morphology_radius", "2",
            "--prompt2nd", "pos_points", "--max_positive_weight", "2", "--no-train_from_scratch"]


def list_steps(data_dir, tmp_path, *arguments):
    parser = run_pipeline.get_args_parser()
    args = parser.parse_args(["--dataset", "phantom", "--data_dir", str(data_dir), *N, *SMALL, *arguments])
    note_command(parser, vars(args))
    setting = Setting.from_args(args)
    ways = [Way("refined", "final", setting.labels[args.pseudo_label], setting.final_schedule, setting.final,
                setting.loss)]
    if args.recommended is not None:
        ways.append(run_pipeline.recommend(setting, args.recommended))
    steps = Steps(setting, tmp_path)
    steps.add_all(ways, args.rounds)
    return setting, ways, {step.key: step for step in steps.found}


def parse(step):
    """The arguments as an agent's process has them."""
    shown = {f"{argument.section}/{name}": "" if argument.value is None else str(argument.value)
             for name, argument in describe_arguments(step.module, step.chosen).items()}
    parser = import_module(step.module).get_args_parser()
    return parser.parse_args(write_command_line(parser, shown))


@pytest.mark.parametrize("arguments", [
    [*PREPARED, "--recommended", "demo"], ["--preset", "recommended", "--sam_type", "demo", "--rounds", "1"],
    ["--pseudo_label", "random_walk", "--ccl_selection", "largest", "--final_epochs", "5"], ["--pseudo_label", "raw"]])
def test_commands_mean_what_the_pipeline_does(phantom_data_dir, tmp_path, arguments):
    setting, ways, steps = list_steps(phantom_data_dir, tmp_path, *arguments)
    initial = parse(steps["initial"])
    assert options_from(Schedule, initial) == setting.schedule and initial.seed == setting.seed
    assert Architecture.from_args(initial, setting.data) == setting.architecture
    for way in ways:
        args = parse(steps[way.final])
        labels = PSEUDO_LABELS[args.pseudo_label].from_args(args, setting.data)
        assert (type(labels), vars(labels)) == (type(way.labels), vars(way.labels))
        assert replace(options_from(Schedule, args), epochs=args.final_epochs or args.epochs) == way.schedule
        assert (options_from(FinalOptions, args), options_from(LossOptions, args)) == (way.options, way.loss)
        assert options_from(Selection, args) == setting.selection
        if way.labels.kind != "raw":
            masks = steps[f"{way.refined} masks"]
            assert masks.module == way.labels.made_by and steps[way.final].after == (masks.key,)
            assert type(way.labels).from_args(parse(masks), setting.data) == way.labels
            measured = parse(steps[f"{way.refined} on unlabeled"])
            assert PSEUDO_LABELS[measured.pseudo_label].from_args(measured, setting.data) == way.labels
            assert (measured.split, measured.results_dir) == ("unlabeled", tmp_path)
        else:
            assert steps[way.final].after == ("raw masks",)


def test_a_queue_needs_a_server(monkeypatch):
    monkeypatch.setattr(queued_steps, "has_server", lambda: False)
    with pytest.raises(InputError, match="--queue gpu: needs a ClearML server"):
        queued_steps.check_queue("gpu")
    monkeypatch.setattr(queued_steps, "has_server", lambda: True)
    monkeypatch.setattr(queued_steps, "find_queues", lambda: ["cpu", "default"])
    with pytest.raises(InputError, match="no such queue; it has: cpu, default"):
        queued_steps.check_queue("gpu")


def test_a_second_round_goes_on_from_the_first_ones_network(phantom_data_dir, tmp_path):
    steps = list_steps(phantom_data_dir, tmp_path, "--sam_type", "demo", "--rounds", "2")[2]
    assert {key: step.parents for key, step in steps.items()} == {
        "initial": [], "raw masks": ["initial"],
        "refined 1 masks": ["initial"], "final 1": ["initial", "refined 1 masks"],
        "refined 2 masks": ["final 1"], "final 2": ["final 1", "refined 2 masks"],
        "initial on test": ["initial"], "raw on unlabeled": ["initial", "raw masks"],
        "refined on unlabeled": ["final 1", "refined 2 masks"], "final on test": ["final 2"]}
