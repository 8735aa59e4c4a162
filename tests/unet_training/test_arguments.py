"""Which trained model arguments mean."""
import argparse

import numpy as np
import pytest

from scripts import run_pipeline
from unet_training import training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.arguments import task_parameters
from utils.datasets.description import OWN
from utils.files import write_png
from utils.tracking.models import Model


def parse(stage, *arguments: str) -> argparse.Namespace:
    return stage.get_args_parser().parse_args(arguments)


@pytest.fixture
def is_found_again(monkeypatch):
    """Whether a model of that stage, trained with these parameters, stands for a training with other arguments."""
    def found(stage, name: str, parameters: dict, *arguments: str) -> bool:
        made = Model("made", parameters, (), (), "", 0.0, lambda: None)
        monkeypatch.setattr(run_pipeline, "find_models", lambda stage: [made] * (stage == name))
        monkeypatch.setattr(run_pipeline, "run", lambda *_, **__: "new")
        monkeypatch.setattr(run_pipeline, "sources", lambda _: ())
        monkeypatch.setattr(stage, "run_parameters", lambda args: task_parameters(args, name))
        return run_pipeline.train_if_missing(stage, parse(stage, *arguments)) == "made"
    return found


def test_a_model_older_than_an_argument_was_trained_with_its_default(is_found_again):
    older = task_parameters(parse(training, "--lr", "0.1"), "initial")
    del older["bf16"]
    assert is_found_again(training, "initial", older, "--lr", "0.1")
    assert not is_found_again(training, "initial", older, "--lr", "0.1", "--bf16")
    assert not is_found_again(training, "initial", older, "--lr", "0.2")


SETTINGS = {"sam": ("--prompt1st", "pos_points"), "random_walk": ("--random_walk", "active"),
            "nnunet": ("--nnunet_epochs", "3")}


@pytest.mark.parametrize("kind", ["raw", *SETTINGS])
def test_only_the_settings_of_its_own_pseudo_labels_make_another_final_model(is_found_again, kind):
    own = ("--model_id", "initial", "--pseudo_label", kind)
    made = task_parameters(parse(training_on_pseudo_labels, *own), "final")
    for other, setting in SETTINGS.items():
        assert is_found_again(training_on_pseudo_labels, "final", made, *own, *setting) == (other != kind)
    cleaning = is_found_again(training_on_pseudo_labels, "final", made, *own, "--ccl_selection", "none")
    assert cleaning == (kind in ("raw", "nnunet"))


def test_sam_makes_another_mean_teacher_only_where_it_is_asked(is_found_again):
    for own, same in (((), True), (("--reliable",), False)):
        own = ("--model_id", "initial", *own)
        made = task_parameters(parse(training_with_mean_teacher, *own), "mean_teacher")
        assert is_found_again(training_with_mean_teacher, "mean_teacher", made, *own, "--sam_type", "vit_b") == same


def test_other_data_are_another_training(own):
    folder = own[0] / "mine"
    description = "mean = 0.5\nstd = 0.25\npositive_weights = [3.0, 4.0]\n" + (folder / OWN).read_text()
    (folder / OWN).write_text(description)

    def parameters(*arguments: str) -> dict:
        args = parse(training, "--dataset", "mine", "--data_dir", str(own[0]), "--num_train_samples", "2", *arguments)
        return training.run_parameters(args, *run_pipeline.sources(args))

    before = parameters()
    assert before == parameters() == parameters("--infer_batch_size", "3") and before["input_size"] == [36, 60]
    (folder / OWN).write_text(description.replace("[3.0, 4.0]", "[3.0, 5.0]"))
    reweighted = parameters()
    replaced = np.full((36, 60), 2, np.uint8)
    write_png(folder / "masks" / "5.png", replaced)  # of a test image
    assert before != reweighted == parameters()
    write_png(folder / "masks" / "1.png", replaced)
    redrawn = parameters()
    write_png(folder / "img" / "0.png", replaced)
    assert reweighted != redrawn != parameters()
