"""The study's table, and what is computed from it."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from benchmarks import paper_way
from scripts import plot_results, run_pipeline, run_study
from scripts.evaluate import Evaluation
from scripts.run_study import COLUMNS
from scripts.study import methods
from scripts.study.methods import METHODS
from segment_anything.checkpoints import identify
from segment_anything.embeddings import compute_embedding
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.registry import default_checkpoint, load_prompt_modules, load_sam
from tests.conftest import OWN_DESCRIPTION
from tests.segment_anything.test_cleaning import scipy_clean
from tests.small_sam import register_small_sam
from unet_training.checkpoint import load_checkpoint
from unet_training.sam_decoder.training import TuningOptions
from utils.datasets.annotated import load_image, open_dataset
from utils.datasets.description import OWN
from utils.dice import multilabel_dice
from utils.errors import InputError
from utils.files import read_grey
from utils.mask_store import MaskStore
from utils.tracking.models import fetch_model, find_models

SMALL = ["--epochs", "1", "--base_width", "2", "--n_last_channel", "2", "--input_size", "64", "48",
         "--data_sample_per_epoch", "4", "--batch_size", "4"]


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_method_runs_and_a_rerun_trains_nothing(phantom_data_dir, tmp_path, monkeypatch):
    data_dir = shutil.copytree(phantom_data_dir, tmp_path / "data")
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    (data_dir / "sam_checkpoints").mkdir()
    register_small_sam(monkeypatch, data_dir / "sam_checkpoints", "medsam", preprocessing="squash")
    monkeypatch.setattr(methods, "TUNING", TuningOptions(epochs=1, images_per_epoch=2, augmented=0))
    names = [method for method in METHODS if not method.startswith("nnunet")]  # see test_nnunet.py
    arguments = run_study.get_args_parser().parse_args(
        ["--dataset", "phantom", "--data_dir", str(data_dir), "--results_dir", str(tmp_path / "results"),
         "--num_train_samples", "3", *SMALL, "--methods", *names])
    rows = read(run_study.main(arguments))
    assert tuple(rows[0]) == COLUMNS
    assert list(dict.fromkeys(row["method"] for row in rows)) == names
    for method in names:
        own = [row for row in rows if row["method"] == method]
        assert len({row["image"] for row in own}) == 10 and len({row["model_id"] for row in own}) == 1
        assert all(0 <= float(row[measure]) <= 100 for row in own for measure in ("dice", "surface_dice"))
    check_pseudo_labels(data_dir, tmp_path / "results")
    check_rows_without_a_second_training(data_dir, rows, tmp_path)
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    ids = {entry["method"]: entry["model_id"] for entry in manifest["results"]}
    refined = [name for name in names if name.startswith("u_net_")]  # of the initial network's own masks
    assert all(ids[name] == ids["initial"] for name in refined)
    assert len(set(ids.values())) == len(names) - len(refined)
    assert fetch_model(ids["mixed"]).parameters["mixed"] and not fetch_model(ids["sam"]).parameters["mixed"]
    assert fetch_model(ids["reliable_mean_teacher"]).parameters["reliable"] == 0.85
    assert fetch_model(ids["reliable_mean_teacher"]).parameters["reliable_model_id"] == ids["mean_teacher"]
    assert fetch_model(ids["mean_teacher"]).parameters["reliable"] is None
    assert fetch_model(ids["fully_supervised"]).parameters["num_train_samples"] == 43
    assert fetch_model(ids["raw"]).parameters["masks"] == "raw"
    tuned = fetch_model(fetch_model(ids["sam_finetuned"]).parameters["sam_model_id"]).parameters
    assert (tuned["stage"], tuned["initial_model_id"]) == ("sam_decoder", ids["initial"])
    parameters = fetch_model(ids["lraspp_on_sam"]).parameters
    assert (parameters["architecture"], parameters["data_aug"]) == ("lraspp_on_sam", 0)
    assert fetch_model(ids["medsam"]).parameters["masks"] == "sam_box_highest_probability_released_medsam"
    trained = len(find_models())
    assert read(run_study.main(arguments)) == rows
    assert len(find_models()) == trained
    monkeypatch.setattr(Evaluation, "run", lambda _: pytest.exit("measured anew"))
    assert read(run_study.main(arguments)) == rows
    with next((data_dir / "phantom").rglob(f"{rows[0]['image']}.png")).open("ab") as file:
        file.write(b" ")  # another file of a test image
    with pytest.raises(pytest.exit.Exception, match="measured anew"):
        run_study.main(arguments)


class TrainingError(Exception):
    """Something would be trained."""


def run_until_trained(monkeypatch, stage, data_dir, tmp_path, *arguments: str) -> None:
    """Raises a TrainingError where the first network would be trained."""
    def train(*_):
        raise TrainingError

    monkeypatch.setattr(methods, "train_if_missing", train)
    stage.main(stage.get_args_parser().parse_args(["--data_dir", str(data_dir), "--results_dir", str(tmp_path / "new"),
                                                   "--batch_size", "4", *arguments]))


@pytest.mark.parametrize(("stage", "arguments", "message"), [
    (run_study, ["--num_train_samples", "3", "99"], "99 images of the train split are asked for"),
    (run_study, ["--methods", "initial", "sam", "--sam_type", "vit_h"], "download_checkpoint vit_h"),
    (run_study, ["--methods", "initial", "medsam"], "medsam"),
    (run_study, ["--prompt1st", "neg_points"], "--prompt1st"),
    (run_study, ["--methods", "raw", "--batch_size", "64"], "12 unlabeled images don't fill one batch of 64"),
    (run_study, ["--methods", "mean_teacher", "--batch_size", "16"], "15 images don't fill one batch of 16"),
    (run_study, ["--drop_unsure", "0.2"], "--drop_unsure 0.2: masks of kind raw have no estimated Dice"),
    (run_study, ["--methods", "sam", "nnunet", "--drop_unsure", "0.2"], "--drop_unsure 0.2: masks of kind nnunet"),
    (run_study, ["--methods", "sam", "--drop_unsure", "0.8"], "3 unlabeled images that --drop_unsure 0.8 leaves don't"),
    (run_study, ["--methods", "raw", "--mixed", "released", "--batch_size", "5"], "even number of at most 6"),
    (run_study, ["--methods", "sam", "--mixed", "released", "--batch_size", "8"], "even number of at most 6"),
    (run_study, ["--methods", "recommended", "--batch_size", "1"], "--batch_size 1: half of a batch are labeled"),
    (run_study, ["--methods", "sam", "--refinement", "recommended"], "name `recommended` in --methods"),
    (run_pipeline, ["--batch_size", "64"], "12 unlabeled images don't fill one batch of 64"),
    (run_pipeline, ["--pseudo_label", "random_walk", "--drop_unsure", "0.2"], "masks of kind random_walk have no"),
    (run_pipeline, ["--mixed", "released", "--batch_size", "5"], "even number of at most 6"),
    (run_pipeline, ["--recommended", "--batch_size", "1"], "--batch_size 1: half of a batch are labeled"),
])
def test_mistakes_are_told_before_anything_is_trained(phantom_data_dir, monkeypatch, tmp_path, stage, arguments,
                                                      message):
    with pytest.raises(InputError, match=message):
        run_until_trained(monkeypatch, stage, phantom_data_dir, tmp_path, "--dataset", "phantom",
                          "--num_train_samples", "3", *arguments)


def test_methods_that_estimate_or_mix_by_themselves_are_trained(phantom_data_dir, monkeypatch, tmp_path):
    for arguments in (["sam", "recommended", "--drop_unsure", "0.2"], ["recommended", "--mixed", "released",
                                                                      "--batch_size", "5"]):
        with pytest.raises(TrainingError):
            run_until_trained(monkeypatch, run_study, phantom_data_dir, tmp_path, "--dataset", "phantom",
                              "--num_train_samples", "3", "--methods", *arguments)


def test_images_without_labels_are_needed_only_where_they_are_trained_on(own, monkeypatch, tmp_path):
    data_dir, _, _ = own
    description = OWN_DESCRIPTION.replace("vit_b", "demo")
    (data_dir / "mine" / OWN).write_text(
        f"mean = 0.5\nstd = 0.3\nresize_dtype = \"float32\"\npos_weight = [1, 1]\n{description}")
    arguments = ("--dataset", "mine", "--num_train_samples", "-1", "--methods", "initial", "u_net_sam")
    with pytest.raises(TrainingError):
        run_until_trained(monkeypatch, run_study, data_dir, tmp_path, *arguments)
    for method in ("raw", "mean_teacher"):
        with pytest.raises(InputError, match="no unlabeled images"):
            run_until_trained(monkeypatch, run_study, data_dir, tmp_path, *arguments, method)


def check_rows_without_a_second_training(data_dir, rows, folder) -> None:
    """U-Net + SAM and U-Net + Random Walk by the paper's plain way: upstream's modules, SciPy's components."""
    initial = fetch_model(next(row["model_id"] for row in rows if row["method"] == "initial"))
    network, _ = load_checkpoint(initial.weights)
    data, checkpoint = open_dataset("phantom", data_dir, (64, 48)), default_checkpoint("demo", data_dir)
    sam, modules = load_sam("demo", checkpoint), load_prompt_modules("demo", checkpoint)
    for stem in data.stems("test")[:2]:
        image = torch.from_numpy(load_image(data.image_path(stem), data.description))
        with torch.inference_mode():
            probabilities = network(image[None])[0].sigmoid()
        embedding = compute_embedding(sam, read_grey(data.image_path(stem)), "longest_side", identify(checkpoint))
        paper_way.save_embedding(folder / "gzip.h5", embedding)
        masks, _ = paper_way.refine(probabilities, folder / "gzip.h5", embedding, *modules, RefinementOptions())
        expected = {"u_net_sam": masks,
                    "u_net_random_walk": scipy_clean(probabilities.numpy(), "highest_probability")}
        for method, mask in expected.items():
            measured = {row["class"]: float(row["dice"]) for row in rows
                        if (row["method"], row["image"]) == (method, stem)}
            for label, ground_truth, own in zip(data.description.labels, data.mask(stem), mask, strict=True):
                if ground_truth.any():
                    dice = 200 * (ground_truth & own).sum() / (ground_truth.sum() + own.sum())
                    assert measured[label] == pytest.approx(dice, abs=0.5)  # a pixel that rounding decides


def check_pseudo_labels(data_dir, results) -> None:
    """The Dice of the saved masks is in the table of the pseudo labels."""
    rows = read(results / "pseudo_labels.csv")
    assert {row["method"] for row in rows} == {"raw", "random_walk", "sam", "medsam", "sam_finetuned", "recommended",
                                               "recommended_twice", "recommended_ensemble"}
    data = open_dataset("phantom", data_dir, (64, 48))
    path, = data_dir.glob("seg_masks/*/sam_box_refine_pos_points_neg_points_*_demo.h5")  # and not the fine-tuned one's
    store = MaskStore(path, data.description.labels)
    own = [row for row in rows if row["method"] == "sam" and row["image"] == store.stems[3]]
    channels = [data.description.labels.index(row["class"]) for row in own]
    dice = multilabel_dice(*(torch.from_numpy(each(store.stems[3])) for each in (store.mask, data.mask)))[channels]
    assert [float(row["dice"]) for row in own] == pytest.approx((100 * dice).tolist(), abs=1e-3)
    assert not any(row["surface_dice"] for row in rows)
    assert not any(row["estimated_dice"] for row in rows if row["method"] == "raw")


@pytest.fixture
def study(tmp_path):
    """Twelve images, two classes, the second of which not all show; at n = 5 and 20, two seeds."""
    rng = np.random.default_rng(0)
    levels = {"initial": 60, "sam": 65, "raw": 58}
    extra = ("30.5", "")  # surface Dice, SAM's estimate
    rows = [("hands", method, n, seed, f"image{image}", label, f"{dice + n + rng.normal():.4f}", *extra, "id")
            for n in (5, 20) for seed in (1, 2) for method, dice in levels.items()
            for image in range(12) for label in ("Radius", "Ulna")[:1 + image % 2]]
    with (tmp_path / "study.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    estimates = [("hands", method, 20, 1, f"image{image}", "Radius", dice + image, "", estimate, "id")
                 for image in range(12) for method, dice, estimate in (("raw", 50, ""), ("sam", 55, 70 + image % 5))]
    with (tmp_path / "pseudo_labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *estimates])
    arguments = {"dataset": "hands", "data_dir": str(tmp_path), "input_size": None}
    (tmp_path / "manifest.json").write_text(json.dumps({"sam_type": "demo", "arguments": arguments, "results": []}))
    return tmp_path


@pytest.mark.slow
def test_table_equals_a_computation_by_hand(study, capsys):
    table = plot_results.main(plot_results.get_args_parser().parse_args(["--results_dir", str(study)]))
    rows = [row for row in read(study / "study.csv") if row["n"] == "20"]

    def images(method: str) -> list[float]:
        keys = dict.fromkeys((row["seed"], row["image"]) for row in rows)
        return [np.mean([float(row["dice"]) for row in rows if (row["seed"], row["image"]) == key
                         and row["method"] == method]) for key in keys]

    assert [row[0] for row in table] == ["method", "U-Net", "SAM's pseudo labels", "Raw pseudo labels"]
    methods = {"U-Net": "initial", "SAM's pseudo labels": "sam", "Raw pseudo labels": "raw"}
    for title, mean, std, count, p, _, *surface in table[1:]:
        method = methods[title]
        assert float(mean.removesuffix("*")) == pytest.approx(np.mean(images(method)), abs=0.005)
        assert float(std) == pytest.approx(np.std(images(method), ddof=1), abs=0.005)
        assert count == "24" and surface == ["30.50", "0.00"]
        assert mean.endswith("*") == (method == "sam")
        gains = np.reshape(np.subtract(images(method), images("initial")), (2, 12)).mean(axis=0)  # seed, image
        assert p == ("" if method == "initial" else f"{wilcoxon(gains).pvalue:.2g}")
    text = (study / "table.txt").read_text()
    assert text.startswith("data set hands, SAM type demo, 20 labeled images, test images\nmade with the demo SAM")
    assert r"\textbf{" + table[2][1][:-1] + "}" in (study / "table.tex").read_text()
    assert read(study / "table.csv")[1]["mean"] == table[2][1][:-1]
    assert [row["mean"] for row in read(study / "pseudo_label_table.csv")] == ["55.50", "60.50"]
    estimated, = read(study / "estimate_table.csv")
    assert (estimated["method"], estimated["estimate - Dice"]) == ("SAM's pseudo labels", "+11.25")
    for name in ("dice_over_n", "box_plot", "cumulative", "per_class", "estimated_dice"):
        assert (study / f"{name}.png").stat().st_size > 10_000
        assert (study / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "no overlays: " in capsys.readouterr().out and not (study / "overlays.png").exists()


def test_an_n_without_results_is_an_error(study):
    with pytest.raises(InputError, match=r"study\.csv: has no results for n = 7"):
        plot_results.main(plot_results.get_args_parser().parse_args(["--results_dir", str(study), "--n", "7"]))


@pytest.mark.parametrize("manifest", ["", "{}", '{"sam_type": "demo"}',
                                      '{"sam_type": "other", "arguments": {}, "results": []}'])
def test_results_of_an_unknown_sam_are_not_shown(study, manifest):
    (study / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=r"manifest\.json: .* run scripts\.run_study again"):
        plot_results.main(plot_results.get_args_parser().parse_args(["--results_dir", str(study)]))
