"""The stages one after the other on the phantoms."""
import csv
import dataclasses
import json
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from scripts import (
    add_sam_agreement,
    evaluate,
    import_checkpoint,
    plot_prediction,
    plot_pseudo_labels,
    run_pipeline,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
)
from scripts.study.refinement_check import check_refinement, describe_drawn, write_checks
from segment_anything.options import Sam, SamOptions
from segment_anything.refinement.cleaning import clean_masks
from segment_anything.refinement.refine import RefinementOptions
from segment_anything.registry import default_checkpoint
from tests.stage_runs import SMALL, N, run
from tests.unet_training.test_checkpoint import authors_forward, authors_weights, save_authors
from unet_training import pseudo_labels, training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.checkpoint import load_checkpoint
from unet_training.hyper_params import FinalOptions, LossOptions, Machine, Schedule
from unet_training.models import Selection, TrainedModel
from unet_training.pseudo_labels import Raw, Recommended, RecommendedOptions, SamRefined
from unet_training.training_on_pseudo_labels import FinalTraining
from unet_training.training_stage import identity
from utils.datasets import annotated
from utils.datasets.annotated import load_image, open_dataset
from utils.datasets.description import load_description
from utils.dice import surface_dice
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.paths import mask_file
from utils.tracking.models import fetch_model, find_models

pytestmark = pytest.mark.slow  # they share a trained model


def test_last_line_is_the_model_id_and_the_model_knows_its_arguments(workplace, capsys):
    data_dir, _ = workplace
    model_id = run(training, data_dir, "--num_train_samples", "2", *SMALL)
    assert capsys.readouterr().out.splitlines()[-1] == f"model id: {model_id}"
    model = fetch_model(model_id)
    assert model.parameters["num_train_samples"] == 2 and model.parameters["lr"] == 1e-3
    u_net, trained_on = load_checkpoint(model.weights)
    assert u_net.config == {"n_classes": 17, "base_width": 4, "n_last_channel": 4}
    assert trained_on.input_size == (96, 64)


def test_same_seed_same_model_other_seed_other_model(workplace):
    data_dir, _ = workplace
    ids = [run(training, data_dir, "--num_train_samples", "2", *SMALL, "--seed", seed) for seed in ("1", "1", "2")]
    weights = [load_checkpoint(fetch_model(model_id).weights)[0].state_dict() for model_id in ids]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_raw_masks_are_the_thresholded_predictions(workplace, monkeypatch):
    data_dir, model_id = workplace
    path = run(save_segmentations, data_dir, *N)
    assert path == data_dir / "seg_masks" / model_id / "raw.h5"
    data = open_dataset("phantom", data_dir, (96, 64))
    store = MaskStore(path, data.description.labels)
    assert store.stems == data.unlabeled_stems(3, True, 42) and len(store.stems) == 12
    assert store.attributes["clearml_model_id"] == model_id
    u_net, _ = load_checkpoint(fetch_model(model_id).weights)
    pixels = np.asarray(Image.open(data.image_path(store.stems[4])), np.float32) / 255
    resized = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None, None], (96, 64), mode="bilinear")
    with torch.no_grad():
        expected = u_net((resized - data.description.mean) / data.description.std)[0].sigmoid() > 0.5
    assert (store.mask(store.stems[4]) == expected.numpy()).mean() > 0.999  # rounding at the threshold
    monkeypatch.setattr(Raw, "compute", None)  # a rerun predicts nothing
    assert run(save_segmentations, data_dir, *N) == path


def test_refined_masks_carry_their_origin_and_estimates(workplace, refined, monkeypatch):
    data_dir, _ = workplace
    assert refined.name == "sam_box_refine_pos_points_neg_points_highest_probability_released_demo.h5"
    store = MaskStore(refined, open_dataset("phantom", data_dir).description.labels)
    assert len(store.stems) == 12
    parameters = json.loads(store.attributes["refine_params"])
    assert parameters["prompt1st"] == ["box"] and parameters["sam_type"] == "demo"
    assert parameters["name"] == default_checkpoint("demo", data_dir).name
    estimates = np.stack([store.estimated_dice(stem) for stem in store.stems])
    assert estimates.shape == (12, 17) and (~np.isnan(estimates)).any()
    embedding = data_dir / "phantom" / "sam_embeddings" / "demo" / f"{store.stems[0]}.h5"
    with h5py.File(embedding) as file:
        assert file.attrs["checkpoint"] == default_checkpoint("demo", data_dir).name
    monkeypatch.setattr(SamRefined, "compute", None)  # a rerun refines nothing
    assert run(save_refined_segmentations, data_dir, *N) == refined


def test_other_options_go_to_another_file(workplace, refined):
    data_dir, _ = workplace
    box_alone = run(save_refined_segmentations, data_dir, *N, "--prompt2nd")
    assert box_alone != refined and box_alone.parent == refined.parent and refined.exists()


def test_half_precision_embeddings_and_their_masks_have_names_of_their_own(workplace, refined):
    data_dir, _ = workplace
    half = run(save_refined_segmentations, data_dir, *N, "--embeddings", "float16")
    assert half.name == refined.name.replace("_demo", "_demo_float16")
    assert len(list((data_dir / "phantom" / "sam_embeddings" / "demo_float16").iterdir())) == 12
    labels = open_dataset("phantom", data_dir).description.labels
    exact, rounded = MaskStore(refined, labels), MaskStore(half, labels)
    assert np.mean([exact.mask(stem) != rounded.mask(stem) for stem in exact.stems]) < 1e-4


def test_without_stored_embeddings_the_masks_are_the_same(workplace, refined, tmp_path):
    data_dir, model_id = workplace
    labels = open_dataset("phantom", data_dir).description.labels
    kept, folder = refined.rename(tmp_path / "kept.h5"), data_dir / "phantom" / "sam_embeddings"
    hidden = folder.rename(tmp_path / "hidden")
    none = ["--embeddings", "none"]
    try:
        assert run(save_refined_segmentations, data_dir, *N, *none) == refined
        stored, streamed = MaskStore(kept, labels), MaskStore(refined, labels)
        assert streamed.stems == stored.stems
        for stem in stored.stems:
            np.testing.assert_array_equal(streamed.mask(stem), stored.mask(stem))
            np.testing.assert_array_equal(streamed.estimated_dice(stem), stored.estimated_dice(stem))
        for stage, more in ((add_sam_agreement, N), (evaluate, ["--pseudo_label", "sam", "--split", "val", "--model_id",
                                                                model_id, "--results_dir", str(tmp_path)])):
            run(stage, data_dir, *more, *none)
        assert not folder.exists()
    finally:
        hidden.rename(folder)


def test_random_walk_starts_from_the_cleaned_masks_and_acts_only_where_asked(workplace, tmp_path):
    data_dir, model_id = workplace
    settings = ("released", "active")
    files = [run(save_random_walk_segmentations, data_dir, *N, "--random_walk", each) for each in settings]
    assert [path.stem for path in files] == [f"random_walk_{each}_highest_probability" for each in settings]
    data = open_dataset("phantom", data_dir, (96, 64))
    released, active = (MaskStore(path, data.description.labels) for path in files)
    u_net = load_checkpoint(fetch_model(model_id).weights, torch.device("cpu"))[0].eval()
    image = torch.from_numpy(load_image(data.image_path(released.stems[0]), data.description))
    with torch.inference_mode():
        cleaned = clean_masks(u_net(image[None])[0].sigmoid().numpy())
    np.testing.assert_array_equal(released.mask(released.stems[0]), cleaned)
    assert all((active.mask(stem) >= released.mask(stem)).all() for stem in active.stems)
    assert any((active.mask(stem) != released.mask(stem)).any() for stem in active.stems)
    arguments = ["--pseudo_label", "random_walk", "--random_walk", "active"]
    final = run(training_on_pseudo_labels, data_dir, *N, *arguments, "--epochs", "1", "--batch_size", "4")
    assert fetch_model(final).parameters["masks"] == files[1].stem
    on_the_spot = run(evaluate, data_dir, "--model_id", model_id, "--split", "val", *arguments, "--results_dir",
                      str(tmp_path))
    assert on_the_spot.count == 10


@pytest.mark.parametrize("arguments", [["--pseudo_label", "sam"], ["--pseudo_label", "raw", "--no-train_from_scratch"],
                                       ["--pseudo_label", "raw", "--mixed"]])
def test_final_model_trains_on_the_masks_that_the_arguments_name(workplace, refined, arguments):
    data_dir, model_id = workplace
    run(save_segmentations, data_dir, *N)
    final = run(training_on_pseudo_labels, data_dir, *N, *arguments, "--epochs", "2", "--batch_size", "4")
    parameters = fetch_model(final).parameters
    assert parameters["initial_model_id"] == model_id and parameters["stage"] == "final"
    assert parameters["masks"] == ("raw" if "raw" in arguments else refined.stem)


def test_recommended_masks_are_calibrated_once_and_known_by_the_validation_images(workplace, monkeypatch):
    data_dir, model_id = workplace
    path = run(save_refined_segmentations, data_dir, *N, "--refinement", "recommended")
    assert path.name == "sam_recommended_demo.h5"
    labels = load_description("phantom", data_dir).labels
    store = MaskStore(path, labels)
    assert len(store.stems) == 12 and store.mask(store.stems[0]).shape == (17, 96, 64)
    estimates = np.stack([store.estimated_dice(stem) for stem in store.stems])
    assert np.nanmin(estimates) >= 0 and np.nanmax(estimates) <= 1 and not np.isnan(estimates).all()
    known = json.loads(path.with_suffix(".json").read_text())["calibration"]
    before, after = known["dice"]
    assert len(known["cuts"]) == 17 and after > before

    model = TrainedModel.load(fetch_model(model_id), open_dataset("phantom", data_dir), torch.device("cpu"))
    recommended = Recommended(Sam.choose(SamOptions(), model.data), RecommendedOptions("recommended"))
    calls, first = [], recommended.calibrate(model)  # read from its file
    monkeypatch.setattr(pseudo_labels, "calibrate", lambda *args: calls.append(args) or first)
    assert list(recommended.calibrate(model).cuts) == known["cuts"] and not calls
    changed = model.data.with_input((96, 64), 0.5, 0.2)
    changed.content = lambda stem: b"another ground truth"
    model_of_changed = dataclasses.replace(model, data=changed)
    recommended.calibrate(model_of_changed)
    assert len(calls) == 1  # it is made anew

    def train(labels, initial):
        stage = FinalTraining(Schedule(), 42, initial, labels, Selection(), FinalOptions(), LossOptions(), Machine())
        return identity(stage.parameters)

    monkeypatch.setattr(FinalTraining, "images", SimpleNamespace(parameters={}))  # the unlabeled ones are the same
    assert train(recommended, model) != train(recommended, model_of_changed)  # a network of the old masks isn't taken
    assert train(Raw(), model) == train(Raw(), model_of_changed)


def test_the_recommended_refinement_refuses_what_it_would_ignore(workplace):
    data_dir, _ = workplace
    with pytest.raises(InputError, match="--refinement recommended: chooses prompts"):
        run(save_refined_segmentations, data_dir, *N, "--refinement", "recommended", "--prompt1st", "pos_points")


def test_training_recommended_stands_for_its_options_and_yields_to_those_that_are_given(workplace):
    data_dir, _ = workplace
    run(save_segmentations, data_dir, *N)
    common = (*N, "--pseudo_label", "raw", "--epochs", "2", "--final_epochs", "3", "--batch_size", "4")
    asked = (["--training", "recommended"],
             ["--no-train_from_scratch", "--mixed", "--loss", "bce_dice", "--max_positive_weight", "1", "--ema",
              "0.999"],
             ["--training", "recommended", "--ema", "0.5"], ["--mixed", "released", "--training", "recommended"])
    parameters = [fetch_model(run(training_on_pseudo_labels, data_dir, *common, *arguments)).parameters
                  for arguments in asked]
    assert parameters[0] == parameters[1] and parameters[0]["epochs"] == 3
    assert parameters[2] == {**parameters[0], "ema": 0.5}
    assert parameters[3] == {**parameters[0], "mixed": "released"}


def test_an_initial_network_trained_as_recommended_is_another_one(workplace, monkeypatch):
    data_dir, model_id = workplace
    losses = []
    monkeypatch.setattr(training, "train", lambda stage, device: losses.append(stage.prepare(device)))
    run(training, data_dir, *N, *SMALL, "--initial_training", "recommended")
    prepared, = losses
    assert prepared.loss.bce.pos_weight.max() == 1 and prepared.network is prepared.model.average.module
    monkeypatch.undo()
    made = fetch_model(run(training, data_dir, *N, *SMALL, "--seed", "5", "--initial_training", "recommended"))
    assert made.parameters["initial_training"] == "recommended"
    assert load_checkpoint(made.weights)[0].config == load_checkpoint(fetch_model(model_id).weights)[0].config


def test_the_mean_teacher_goes_on_from_the_initial_model(workplace):
    data_dir, model_id = workplace
    own = ("--model_id", model_id, "--epochs", "2", "--batch_size", "4")
    result = fetch_model(run(training_with_mean_teacher, data_dir, *own))
    assert (result.parameters["stage"], result.parameters["initial_model_id"]) == ("mean_teacher", model_id)
    initial, teacher = (load_checkpoint(each.weights, torch.device("cpu"))[0].state_dict()
                        for each in (fetch_model(model_id), result))
    moved = max((initial[key] - teacher[key]).abs().max().item() for key in initial)
    assert 0 < moved < 0.1  # 6 steps of 0.4 % each


@pytest.mark.parametrize(("stage", "arguments"), [(training_on_pseudo_labels, ["--pseudo_label", "raw"]),
                                                  (training_with_mean_teacher, [])])
def test_pos_weight_is_capped_where_asked(workplace, monkeypatch, stage, arguments):
    data_dir, _ = workplace
    run(save_segmentations, data_dir, *N)
    caps = []
    monkeypatch.setattr(stage, "train", lambda training, device: caps.append(
        training.prepare(device).loss.pos_weight.max().item()))
    for cap in ([], ["--max_positive_weight", "3"]):
        run(stage, data_dir, *N, *arguments, *cap, "--batch_size", "4")
    assert caps == [pytest.approx(max(open_dataset("phantom", data_dir).description.pos_weight)), 3]


def test_masks_with_which_sam_agrees_enter_the_mean_teacher_as_labels(workplace, capsys):
    data_dir, model_id = workplace
    own = ("--model_id", model_id)
    path = run(add_sam_agreement, data_dir, *own)
    assert path == mask_file(data_dir, model_id, "agreement_demo")
    store = MaskStore(path, open_dataset("phantom", data_dir).description.labels)
    agreement = np.array([np.nanmean(store.estimated_dice(stem)) for stem in store.stems])
    assert len(agreement) == 12 and ((agreement >= 0) & (agreement <= 1)).all()
    threshold = float(np.sort(agreement)[-4])
    result = run(training_with_mean_teacher, data_dir, *own, "--epochs", "1", "--batch_size", "4", "--reliable",
                 str(threshold))
    assert "4 of 12 unlabeled images enter as labeled" in capsys.readouterr().out
    assert fetch_model(result).parameters["reliable"] == threshold


def test_evaluation_of_saved_masks_equals_a_computation_by_hand(workplace, refined, tmp_path):
    data_dir, model_id = workplace
    summary = run(evaluate, data_dir, "--split", "unlabeled", "--pseudo_label", "sam", "--model_id", model_id,
                  "--results_dir", str(tmp_path), "--surface_tolerance", "1.5")
    data = open_dataset("phantom", data_dir, (96, 64))
    store = MaskStore(refined, data.description.labels)
    images = []
    for stem in store.stems:
        ground_truth, mask = data.mask(stem), store.mask(stem)
        classes = [200 * (t & m).sum() / (t.sum() + m.sum()) for t, m in zip(ground_truth, mask, strict=True)
                   if t.any()]
        images.append(np.mean(classes))
    assert summary.mean == pytest.approx(np.mean(images), abs=1e-3)
    assert summary.std == pytest.approx(np.std(images, ddof=1), abs=1e-3)
    assert summary.count == 12
    folder = tmp_path / "phantom" / model_id / f"unlabeled_{refined.stem}"
    tables = {}
    for name in ("dice", "surface_dice_1.5px", "estimated_dice"):
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            tables[name] = {row["stem"]: row for row in csv.DictReader(file)}
    rows, stem = tables["dice"], store.stems[7]
    for name, values in {"surface_dice_1.5px": surface_dice(store.mask(stem), data.mask(stem), 1.5),
                         "estimated_dice": store.estimated_dice(stem)}.items():
        measured = [tables[name][stem][label] for label in data.description.labels]
        assert measured == ["" if np.isnan(value) else f"{100 * value:.4f}" for value in values]
        assert any(measured) and not all(measured)
    assert [float(rows[stem]["mean"]) for stem in store.stems] == pytest.approx(images, abs=1e-3)
    pisiform = [bool(rows[stem]["Os pisiforme"]) for stem in store.stems]
    assert pisiform == [data.mask(stem)[5].any() for stem in store.stems]
    assert {path.name.split("_")[0] for path in folder.glob("*.png")} == {"best", "median", "worst"}


def test_evaluation_refines_a_labeled_split_on_the_spot(workplace, tmp_path):
    data_dir, model_id = workplace
    arguments = ("--model_id", model_id, "--split", "val", "--results_dir", str(tmp_path))
    raw, refined = (run(evaluate, data_dir, *arguments, "--pseudo_label", label) for label in ("raw", "sam"))
    assert raw.count == refined.count == 10
    assert raw.mean != refined.mean


def test_what_is_told_of_a_refinement_is_what_the_masks_are(workplace, refined, tmp_path):
    data_dir, model_id = workplace
    model = TrainedModel.load(fetch_model(model_id), open_dataset("phantom", data_dir), torch.device("cpu"))
    data, stems = model.data, model.data.stems("val")
    labels = SamRefined(Sam.choose(SamOptions(sam_type="demo"), data), RefinementOptions())
    check = check_refinement("refined", 1, labels, model, Selection(), tmp_path)
    truth = np.stack([data.mask(stem) for stem in stems])
    raw = np.stack([probabilities > 0.5 for _, probabilities in model.probabilities(stems)])
    made = list(labels.compute(model, stems))
    drawn_by_sam = np.stack([mask.mask for mask in made])

    def dice(masks: np.ndarray) -> np.ndarray:
        both, total = ((each).sum(axis=(2, 3)) for each in (masks & truth, masks.astype(int) + truth))
        return np.where(truth.any(axis=(2, 3)), 200 * both / np.maximum(total, 1), np.nan)

    shown, found, after = (masks.any(axis=(2, 3)) for masks in (truth, raw, drawn_by_sam))
    for number, row in enumerate(check.of_labels[:-1]):
        assert row.label == data.description.labels[number]
        assert (row.shown, row.found) == (shown[:, number].sum(), (shown & found)[:, number].sum())
        assert row.drawn == sum(not np.isnan(mask.estimated_dice[number]) for mask in made)
        assert (row.false_before, row.false_after) == tuple((each & ~shown)[:, number].sum() for each in (found, after))
        assert (row.dice_before, row.dice_after) == pytest.approx(
            tuple(np.nanmean(dice(each)[:, number]) for each in (raw, drawn_by_sam)), abs=1e-3)
    total = check.of_labels[-1]
    assert total.dice_after == pytest.approx(np.nanmean(np.nanmean(dice(drawn_by_sam), axis=1)), abs=1e-3)
    assert total.shown == shown.sum() and total.false_before == (found & ~shown).sum() > 0
    again = check_refinement("refined", 1, labels, model, Selection(), tmp_path)  # read, not measured
    np.testing.assert_array_equal([row[1:] for row in again.of_labels], [row[1:] for row in check.of_labels])
    write_checks(tmp_path / "check.csv", [check])
    with (tmp_path / "check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and rows[-1]["label"] == "all labels" and int(rows[-1]["drawn"]) == total.drawn
    summary = evaluate.Evaluation(model, Raw(), "val", Selection(), tmp_path).run_if_missing()
    assert summary.false_positives == total.false_before
    told = describe_drawn(labels, model, model.unlabeled_stems(Selection()))
    drawn, = re.findall(rf"SAM drew (\d+) of {12 * 17} masks of 12 images", told)
    others = re.findall(r"of (\d+) the U-Net found nothing", told) + re.findall(r"(\d+) of the U-Net's lie", told)
    assert int(drawn) + sum(map(int, others)) == 12 * 17


def test_images_left_out_of_averages_stay_in_the_table(workplace, tmp_path, monkeypatch, capsys):
    data_dir, model_id = workplace
    stem = open_dataset("phantom", data_dir).stems("test")[2]
    description = replace(load_description("phantom"), left_out_of_averages=(stem,))
    monkeypatch.setattr(annotated, "load_description", lambda *_: description)
    assert run(evaluate, data_dir, "--model_id", model_id, "--results_dir", str(tmp_path)).count == 9
    assert f"without {stem}" in capsys.readouterr().out
    assert stem in (tmp_path / "phantom" / model_id / "test_raw" / "dice.csv").read_text()


def test_pipeline_passes_ids_and_skips_what_is_there(workplace, tmp_path, monkeypatch, capsys):
    data_dir, _ = workplace
    arguments = (*N, *SMALL, "--seed", "7", "--results_dir", str(tmp_path))

    def run_without_report(*more: str) -> list:
        with monkeypatch.context() as patch:
            patch.setattr(run_pipeline, "write_report", lambda *_, **__: None)
            return run(run_pipeline, data_dir, *arguments, *more)

    rows = run_without_report()
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [f"{row['what']}/{row['split']}" for row in table] == [
        "initial/test", "raw/unlabeled", "refined/unlabeled", "final/test"]
    assert [int(row["n_images"]) for row in table] == [10, 12, 12, 10]
    assert [float(row["dice_mean"]) for row in table] == pytest.approx([s.mean for _, _, s in rows], abs=1e-3)
    models = find_models(seed=7, dataset="phantom")
    assert [model.parameters["stage"] for model in models] == ["final", "initial"]
    assert models[0].parameters["initial_model_id"] == models[1].id
    assert "demo" in capsys.readouterr().out
    assert run_without_report() == rows
    assert len(find_models(seed=7, dataset="phantom")) == 2
    both = run(run_pipeline, data_dir, *arguments, "--recommended", "--rounds", "2")
    assert [what for what, _, _ in both] == ["initial", "raw", "refined", "final", "recommended", "recommended_final"]
    chain = find_models(seed=7, dataset="phantom", stage="final")
    assert [model.parameters["initial_model_id"] for model in chain] == [
        chain[1].id, models[1].id, models[0].id, models[1].id]
    others = [run_without_report("--pseudo_label", label) for label in ("raw", "random_walk")]
    assert [[what for what, _, _ in each] for each in others] == [["initial", "raw", "final"],
                                                                  ["initial", "raw", "refined", "final"]]
    assert len(find_models(seed=7, dataset="phantom", stage="initial")) == 1


@pytest.mark.slow
def test_a_prediction_with_its_prompts_and_saved_masks_are_drawn(workplace, refined, tmp_path):
    data_dir, model_id = workplace
    stem = open_dataset("phantom", data_dir).stems("test")[1]
    own = ("--model_id", model_id, "--results_dir", str(tmp_path))
    folder = run(plot_prediction, data_dir, *own, "--stem", stem)
    assert {path.name for path in folder.iterdir()} == {
        f"{what}_{stem}.{suffix}" for what in ("prediction", "prompts") for suffix in ("png", "pdf")}
    run(add_sam_agreement, data_dir, *N)
    folder = run(plot_pseudo_labels, data_dir, *own)
    assert folder.name == refined.stem and {path.stem for path in folder.iterdir()} == {
        "pseudo_labels", "estimate_histogram", "agreement_curve"}
    for picture in folder.glob("*.png"):
        assert np.ptp(np.asarray(Image.open(picture))) > 100


def test_masks_of_all_images_and_of_those_that_a_table_chooses(workplace):
    data_dir, model_id = workplace
    path = run(save_segmentations, data_dir, *N, "--include_annotated")
    assert len(MaskStore(path, open_dataset("phantom", data_dir).description.labels).stems) == 63 + 12
    for rule, message in (("cast", "give a column"), ("cast=1", "has no table")):
        with pytest.raises(InputError, match=message):
            run(save_segmentations, data_dir, "--model_id", model_id, "--where", rule)


def test_a_checkpoint_of_the_authors_becomes_a_model(workplace, tmp_path):
    data_dir, _ = workplace
    weights = authors_weights(4, 6, 17)
    save_authors(tmp_path / "theirs.pth", weights)
    model_id = run(import_checkpoint, data_dir, "--file", str(tmp_path / "theirs.pth"), "--num_train_samples", "4",
                   "--input_size", "64", "48")
    path = run(save_segmentations, data_dir, "--num_train_samples", "4")  # found as an initial model
    assert path.parent.name == model_id
    data = open_dataset("phantom", data_dir, (64, 48))
    store = MaskStore(path, data.description.labels)
    image = torch.from_numpy(load_image(data.image_path(store.stems[0]), data.description))
    expected = authors_forward(image[None], weights)[0] > 0
    assert (store.mask(store.stems[0]) == expected.numpy()).mean() > 0.999  # rounding at the threshold
