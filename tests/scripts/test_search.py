"""The search on a barely trained model: resumed, ranked, and honest about options without effect."""
import csv
import shutil

import numpy as np
import pytest

from scripts import search_refinement
from scripts.search_refinement import option_effects
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
        yield [*arguments, "--results_dir", str(data_dir.parent / "results")]


def search(*arguments: str) -> list[dict]:
    return search_refinement.main(search_refinement.get_args_parser().parse_args(arguments))


def test_a_search_goes_on_and_ranks_its_trials(workplace, capsys):
    first = search(*workplace, "--trials", "2")
    assert len(first) == 2
    more = search(*workplace, "--trials", "4")
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


def test_options_without_effect_are_told():
    grid = {"radius": [0, 1], "element": ["disk", "star"], "sigma": [1, 2]}
    trials = [{"radius": radius, "element": element, "sigma": 1, "gain": float(radius)}
              for radius in (0, 1) for element in ("disk", "star")]
    found = {(row["option"], row["value"]): (row["mean_gain"], row["makes_a_difference"])
             for row in option_effects(trials, grid)}
    assert found["radius", 1] == (1.0, "yes")
    assert found["element", "disk"] == (0.5, "no")
    assert found["sigma", 2] == ("", "not compared")
