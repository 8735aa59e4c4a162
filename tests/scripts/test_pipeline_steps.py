"""The commands that agents run of the steps mean what scripts.run_pipeline and scripts.run_study do in their own
process."""
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

import pytest

from scripts import (
    add_sam_agreement,
    run_pipeline,
    run_study,
    save_nnunet_segmentations,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
    train_nnunet,
)
from scripts.evaluate import Evaluation
from scripts.pipeline_steps import Steps
from scripts.run_pipeline import Way
from scripts.study.methods import METHODS, Setting
from segment_anything.tuned_decoder import TunedDecoder
from tests.stage_runs import SMALL, N
from unet_training import combine_networks, training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.models import TrainedModel
from unet_training.pseudo_labels import NNUNetMasks
from unet_training.sam_decoder.training import DecoderTuning
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.tracking import queued_steps
from utils.tracking.arguments import describe_arguments, note_command, write_command_line

PREPARED = ["--sam_type", "demo", "--ccl_selection", "largest", "--morphology", "paper", "--morphology_radius", "2",
            "--prompt2nd", "pos_points", "--max_positive_weight", "2", "--no-train_from_scratch"]


class Noted(Steps):
    """Keeps of each step, by its key, what was asked for."""

    asked: ClassVar[dict[str, Any]]
    networks: ClassVar[dict[str, TrainedModel]]

    def train(self, training):
        model = self.note(super().train, training)
        self.networks[model.id] = model
        return model

    def combine(self, models):
        ids = [model.id.replace(",", " ") for model in models]  # as in any list that a task shows; real ids have none
        model = self.note(super().combine, models, what=ids)
        self.networks[model.id] = model
        return model

    def tune(self, tuning):
        return self.note(super().tune, tuning)

    def prepare(self, labels, model):
        if isinstance(labels, NNUNetMasks):
            return self.note(super().prepare, labels, model, what=(labels.options, labels.seed, model))
        return labels

    def save_masks(self, labels, model):
        self.prepare(labels, model)
        self.note(super().save_masks, labels, model, what=(labels, model, self.setting.selection))

    def measure(self, evaluation):
        self.note(super().measure, evaluation)

    def note(self, method, *arguments, what=None):
        known = set(self.found)
        made = method(*arguments)
        self.asked.update(dict.fromkeys(self.found.keys() - known, what or arguments[0]))
        return made


def parse_arguments(stage, data_dir, *arguments):
    parser = stage.get_args_parser()
    args = parser.parse_args(["--dataset", "phantom", "--data_dir", str(data_dir), *N, *SMALL, *arguments])
    note_command(parser, vars(args))
    return args


def plan_pipeline(data_dir, folder, *arguments):
    setting, ways = make_ways(data_dir, *arguments)
    return run_pipeline.plan(setting, ways, folder)


def make_ways(data_dir, *arguments):
    args = parse_arguments(run_pipeline, data_dir, *arguments)
    setting = Setting.from_args(args)
    ways = [Way("refined", "final", setting.labels[args.pseudo_label], setting.final_schedule, setting.final,
                setting.loss, args.rounds, args.ensemble)]
    if args.recommended is not None:
        ways.append(run_pipeline.recommend(setting, ways[0], args.recommended))
    return setting, ways


def plan_study(data_dir, folder, *arguments):
    args = parse_arguments(run_study, data_dir, *arguments)
    settings = [Setting.from_args(args, num_train_samples=n, seed=seed)
                for n in args.num_train_samples for seed in args.seeds]
    return run_study.plan(settings, args.methods, folder, 2.0)


def parse(step):
    """The arguments as an agent's process has them."""
    shown = {f"{argument.section}/{name}": "" if argument.value is None else str(argument.value)
             for name, argument in describe_arguments(step.module, step.chosen).items()}
    parser = import_module(step.module).get_args_parser()
    return parser.parse_args(write_command_line(parser, shown))


@pytest.fixture
def noted(monkeypatch):
    """`Noted` in the place of `Steps`, and a function that says what a step's command asks its stage for, which is not
    run."""
    said, networks = [], {}
    monkeypatch.setattr(Noted, "asked", {}, raising=False)
    monkeypatch.setattr(Noted, "networks", networks, raising=False)
    for stage in (run_pipeline, run_study):
        monkeypatch.setattr(stage, "Steps", Noted)
    for stage in (training, training_on_pseudo_labels, training_with_mean_teacher):
        monkeypatch.setattr(stage, "train", lambda asked, _: said.append(asked))
    for stage in (save_segmentations, save_refined_segmentations, save_random_walk_segmentations, add_sam_agreement,
                  save_nnunet_segmentations):
        monkeypatch.setattr(stage, "save_masks", lambda *asked: said.append(asked[:3]))
    monkeypatch.setattr(combine_networks, "combine_if_missing", said.append)
    monkeypatch.setattr(train_nnunet, "train_nnunet", lambda *asked: said.append(asked))
    monkeypatch.setattr(DecoderTuning, "run", lambda asked: said.append(asked))
    monkeypatch.setattr(Evaluation, "run", lambda asked: said.append(asked))
    monkeypatch.setattr(TrainedModel, "from_args", lambda args, stage=None: networks[args.model_id])
    monkeypatch.setattr(TrainedModel, "load", lambda record, *_: networks[record])
    monkeypatch.setattr(training_with_mean_teacher, "fetch_model", lambda model_id: model_id)

    def ask(step):
        import_module(step.module).main(parse(step))
        return said.pop()
    return Noted, ask


def to_plain(asked):
    """To be compared: data sets by what they are, networks by their ids."""
    if isinstance(asked, tuple | list):
        return [to_plain(each) for each in asked]
    if isinstance(asked, AnnotatedImages):
        return asked.description
    if isinstance(asked, TrainedModel):
        return asked.id
    if isinstance(asked, training.InitialTraining):  # of which all is a number of images, too
        asked = replace(asked, sampling=replace(asked.sampling, num_train_samples=len(asked.stems)))
    if is_dataclass(asked):
        return type(asked), {field.name: to_plain(getattr(asked, field.name)) for field in fields(asked)}
    return type(asked), vars(asked) if hasattr(asked, "__dict__") else asked


@pytest.mark.parametrize("arguments", [
    [*PREPARED, "--recommended", "demo"], ["--preset", "recommended", "--sam_type", "demo"],
    ["--pseudo_label", "random_walk", "--ccl_selection", "largest", "--final_epochs", "5"], ["--pseudo_label", "raw"]])
def test_commands_mean_what_the_pipeline_does(phantom_data_dir, tmp_path, noted, arguments):
    steps, (notes, ask) = plan_pipeline(phantom_data_dir, tmp_path, *arguments), noted
    assert len(steps.found) >= 6 and steps.found.keys() == notes.asked.keys()
    assert not [key for key, step in steps.found.items() if to_plain(ask(step)) != to_plain(notes.asked[key])]


@pytest.mark.parametrize("arguments", [PREPARED, ["--sam_type", "demo", "--preset", "recommended", "--lr", "0.01"]])
def test_commands_mean_what_the_study_does(phantom_data_dir, tmp_path, monkeypatch, noted, arguments):
    """Every method."""
    monkeypatch.setattr(TunedDecoder, "fetch", lambda model_id: TunedDecoder(
        model_id, "demo", notes.asked[queued_steps.REFERENCE.fullmatch(model_id)["key"]].sam.identity))
    notes, ask = noted
    steps = plan_study(phantom_data_dir, tmp_path, *arguments, "--methods", *METHODS, "--seeds", "7")
    assert len(steps.found) > 40 and steps.found.keys() == notes.asked.keys()
    assert not [key for key, step in steps.found.items() if to_plain(ask(step)) != to_plain(notes.asked[key])]


def test_a_second_round_goes_on_from_the_first_ones_network(phantom_data_dir, tmp_path):
    steps = plan_pipeline(phantom_data_dir, tmp_path, "--sam_type", "demo", "--rounds", "2").found
    initial, final = "train initial phantom n=3", "train final phantom n=3 sam"
    assert {key: step.parents for key, step in steps.items()} == {
        initial: [], "predict, initial phantom n=3": [initial],
        "refine, initial phantom n=3": [initial], final: [initial, "refine, initial phantom n=3"],
        "refine, final phantom n=3 sam": [final], f"{final} (2)": [final, "refine, final phantom n=3 sam"],
        "evaluate test, initial phantom n=3": [initial],
        "evaluate unlabeled, initial phantom n=3": [initial, "predict, initial phantom n=3"],
        "evaluate unlabeled, final phantom n=3 sam, masks sam": [final, "refine, final phantom n=3 sam"],
        "evaluate test, final phantom n=3 sam": [f"{final} (2)"]}


def test_an_ensemble_waits_for_all_its_members(phantom_data_dir, tmp_path):
    steps = plan_pipeline(phantom_data_dir, tmp_path, "--sam_type", "demo", "--ensemble", "3").found
    members = ["train initial phantom n=3", "train initial phantom n=3 (2)", "train initial phantom n=3 (3)"]
    ensemble, refine = "combine ensemble phantom n=3", "refine, ensemble phantom n=3"
    assert [steps[member].chosen["seed"] for member in members] == [42, 1042, 2042]
    assert steps[ensemble].parents == members and steps[refine].parents == [ensemble]
    assert steps["train final phantom n=3 sam"].parents == [ensemble, refine]
    assert steps["predict, initial phantom n=3"].parents == members[:1]  # raw masks are the first one's


def test_ways_share_one_ensemble(phantom_data_dir, tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(Steps, "join_ensemble", lambda _, initial, count: counts.append(count) or initial)
    plan_pipeline(phantom_data_dir, tmp_path, "--sam_type", "demo", "--recommended", "demo", "--ensemble", "3")
    assert counts == [3]


@pytest.mark.parametrize(("arguments", "epochs"), [([], 4), (["--mixed"], 7), (["--training", "recommended"], 7)])
def test_the_recommended_way_takes_as_many_steps_as_the_other_one(phantom_data_dir, arguments, epochs):
    _, (first, recommended) = make_ways(phantom_data_dir, "--epochs", "7", "--recommended", "demo", *arguments)
    assert (first.schedule.epochs, recommended.schedule.epochs) == (7, epochs)
    if "--training" in arguments:  # the way is the same but for its masks
        assert replace(first, refined="", final="", labels=None) == replace(recommended, refined="", final="",
                                                                            labels=None)


def test_methods_of_a_study_share_steps_and_wait_for_what_they_need(phantom_data_dir, tmp_path):
    methods = ("initial", "u_net_sam", "raw", "sam", "mixed", "sam_finetuned", "reliable_mean_teacher",
               "fully_supervised", "nnunet", "nnunet_alone")
    steps = plan_study(phantom_data_dir, tmp_path, "--sam_type", "demo", "--methods", *methods, "--num_train_samples",
                       "3", "5", "--seeds", "1").found
    parents = {key: step.parents for key, step in steps.items()}
    assert len(parents) == 2 + 2 * 28
    assert [key for key in parents if not parents[key]] == [f"train initial phantom n={n}, seed 1" for n in (3, 43, 5)]
    initial, refine, final, decoder, teacher, nnunet, of_nnunet = (f"{name}, seed 1" for name in (
        "train initial phantom n=3", "refine, initial phantom n=3", "train final phantom n=3 sam",
        "train sam_decoder phantom n=3 demo", "train mean_teacher phantom n=3", "train nnunet phantom n=3",
        "evaluate test, initial phantom n=3, masks nnunet"))
    assert parents[final] == parents[f"{final} (2)"] == [initial, refine]  # mixed trains on the same masks
    assert parents[decoder] == [initial] and parents[f"{refine} (2)"] == [decoder, initial]
    assert parents[f"{final} (3)"] == [decoder, initial, f"{refine} (2)"]
    assert parents[f"{teacher} (2)"] == [teacher, initial, "agreement, mean_teacher phantom n=3, seed 1"]
    assert parents[of_nnunet] == [initial, nnunet]


def test_a_queue_needs_a_server(monkeypatch):
    monkeypatch.setattr(queued_steps, "has_server", lambda: False)
    with pytest.raises(InputError, match="--queue gpu: needs a ClearML server"):
        queued_steps.check_queue("gpu")
    monkeypatch.setattr(queued_steps, "has_server", lambda: True)
    monkeypatch.setattr(queued_steps, "find_queues", lambda: ["cpu", "default"])
    with pytest.raises(InputError, match="no such queue; it has: cpu, default"):
        queued_steps.check_queue("gpu")


def test_presets_of_a_study_fill_in_what_is_not_given():
    quick = run_study.get_args_parser().parse_args(["--preset", "quick", "--epochs", "7"])
    assert (quick.epochs, quick.final_epochs, quick.sam_type) == (7, 20, "medsam_lite")
    assert (quick.loss, quick.mixed, quick.refinement, hasattr(quick, "rounds")) == ("bce_dice", "half", "paper", False)
    recommended = run_study.get_args_parser().parse_args(["--preset", "recommended", "--training", "paper"])
    assert (recommended.loss, recommended.epochs) == ("bce", 350)
