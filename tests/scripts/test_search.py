"""The search on a barely trained model: resumed, ranked, and honest about options without effect."""
import csv
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from scripts import search_refinement
from scripts.search_refinement import option_effects, pooled_dice
from unet_training import training

pytestmark = pytest.mark.slow  # they share a trained model


@pytest.fixture(scope="module")
def workplace(phantom_data_dir, tmp_path_factory):
    data_dir = shutil.copytree(phantom_data_dir, tmp_path_factory.mktemp("search") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(data_dir.parent / "runs"))
        arguments = ["--dataset", "phantom", "--data_dir", str(data_dir), "--num_train_samples", "3"]
        small = ["--epochs", "10", "--base_width", "4", "--n_last_channel", "4", "--input_size", "64", "48",
                 "--data_sample_per_epoch", "24", "--batch_size", "4", "--lr", "1e-2"]
        training.main(training.get_args_parser().parse_args([*arguments, *small]))
        yield [*arguments, "--no-figures", "--results_dir", str(data_dir.parent / "results")]


def search(*arguments: str) -> list[dict]:
    return search_refinement.main(search_refinement.get_args_parser().parse_args(arguments))


def test_a_search_goes_on_and_ranks_its_trials(workplace, capsys):
    first = search(*workplace, "--trials", "2")
    assert len(first) == 2
    more = search(*workplace, "--trials", "4", "--figures")
    folder, = Path(workplace[-1]).glob("phantom/*/search_sam_demo")
    assert {path.stem for path in folder.glob("*.pdf")} == {"search_history", "search_slices", "search_contours"}
    assert len(more) == 4 and all(trial in more for trial in first)
    gains = [trial["gain"] for trial in more]
    assert gains == sorted(gains, reverse=True)
    assert f"best of 4 trials: {gains[0]:+.2f}" in capsys.readouterr().out


def test_the_walk_is_searched_to_the_end_of_its_grid(workplace, tmp_path):
    trials = search(*workplace, "--refiner", "random_walk", "--trials", "1000", "--results_dir", str(tmp_path))
    assert len(trials) == 3 * 5 * 5
    again = search(*workplace, "--refiner", "random_walk", "--trials", "1000", "--results_dir", str(tmp_path))
    assert again == trials
    never = [trial["gain"] for trial in trials if trial["walk_radius"] == 1 and trial["ccl_selection"] == "none"]
    np.testing.assert_allclose(never, 0, atol=1e-9)  # neither cleaning nor walk acts: the raw masks
    with next(tmp_path.rglob("options.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["makes_a_difference"] for row in rows if row["option"] == "walk_radius"} == {"yes"}


def test_points_are_those_of_optunas_sampler_and_one_that_was_cut_off_is_tried_again(tmp_path):
    grid = {"width": [1, 2, 4], "name": ["", "box"], "part": [0.5, 1.0]}
    theirs = optuna.create_study(sampler=optuna.samplers.GridSampler(grid, seed=7))
    theirs.optimize(lambda trial: sum(trial.suggest_categorical(name, values) != values[0]
                                      for name, values in grid.items()), n_trials=5)
    expected, tried = [trial.params for trial in theirs.trials], []

    def gain(options):
        tried.append(options)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        search_refinement.search(gain, grid, tmp_path, 5, 7, "some")
    study = search_refinement.search(gain, grid, tmp_path, 5, 7, "some")
    assert [trial.params for trial in study.trials] == expected
    assert tried == [*expected[:3], *expected[2:]]


def test_gains_are_of_all_classes_of_all_images_alike():
    rng = np.random.default_rng(0)
    masks, ground_truth = rng.random((2, 3, 4, 9, 14)) < 0.4  # images, classes, rows, columns
    ground_truth[0, 1:] = False  # an image of one class counts once, the others four times
    dice = [2 * (mask & true).sum() / (mask.sum() + true.sum()) for pair in zip(masks, ground_truth, strict=True)
            for mask, true in zip(*pair, strict=True) if true.any()]
    assert len(dice) == 9
    assert pooled_dice(list(masks), torch.from_numpy(ground_truth)) == pytest.approx(100 * np.mean(dice))


def test_options_without_effect_are_told():
    grid = {"radius": [0, 1], "element": ["disk", "star"], "sigma": [1, 2]}
    trials = [{"radius": radius, "element": element, "sigma": 1, "gain": float(radius)}
              for radius in (0, 1) for element in ("disk", "star")]
    found = {(row["option"], row["value"]): (row["mean_gain"], row["makes_a_difference"])
             for row in option_effects(trials, grid)}
    assert found["radius", 1] == (1.0, "yes")
    assert found["element", "disk"] == (0.5, "no")
    assert found["sigma", 2] == ("", "not compared")
