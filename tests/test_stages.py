"""The stages one after the other on the sample data, and what they say to bad input."""
import csv
import json
import shutil
import sys
from importlib import import_module

import h5py
import numpy as np
import pytest
import torch
from lxml import etree
from PIL import Image

from scripts import (
    add_sam_agreement,
    evaluate,
    run_pipeline,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
)
from scripts.segmentation_dataset import load_image, open_dataset
from segment_anything.registry import default_checkpoint
from tests.conftest import ROOT
from unet_training import training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.checkpoint import load_checkpoint
from utils.cli import run_stage
from utils.dice import surface_dice
from utils.experiment import fetch_model, find_models
from utils.mask_cleaning import clean_masks
from utils.mask_store import MaskStore, MaskWriter
from utils.paths import mask_file

STAGES = ["scripts.make_phantoms", "scripts.copy_and_process_graz_imgs", "scripts.prepare_jsrt",
          "scripts.measure_dataset", "unet_training.training", "scripts.save_segmentations",
          "scripts.generate_img_embeddings", "scripts.save_refined_segmentations",
          "scripts.save_random_walk_segmentations", "unet_training.training_on_pseudo_labels",
          "unet_training.training_with_mean_teacher", "scripts.add_sam_agreement", "scripts.evaluate",
          "scripts.run_pipeline", "scripts.download_checkpoint", "scripts.train_demo_sam",
          "scripts.upload_offline_runs", "scripts.run_study", "scripts.plot_results", "scripts.search_refinement",
          "scripts.train_nnunet", "scripts.save_nnunet_segmentations"]
SMALL = ["--epochs", "2", "--base_width", "4", "--n_last_channel", "4", "--input_size", "96", "64",
         "--data_sample_per_epoch", "8", "--batch_size", "4"]
N = ["--num_train_samples", "3"]


def run(stage, data_dir, *arguments):
    """Runs a stage's main in this process and returns what it returns."""
    args = ["--dataset", "phantom", "--data_dir", str(data_dir), *arguments]
    return stage.main(stage.get_args_parser().parse_args(args))


@pytest.fixture(scope="module")
def workplace(phantom_data_dir, tmp_path_factory):
    """A data folder that may be written to and a barely trained initial model: yields the folder and the model's id."""
    data_dir = tmp_path_factory.mktemp("workplace") / "data"
    shutil.copytree(phantom_data_dir, data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(data_dir.parent / "runs"))
        more = ("--epochs", "20", "--data_sample_per_epoch", "24", "--lr", "1e-2")  # enough for masks that differ
        yield data_dir, run(training, data_dir, *N, *SMALL, *more)


@pytest.fixture(scope="module")
def refined(workplace):
    data_dir, _ = workplace
    return run(save_refined_segmentations, data_dir, *N, "--model_id", workplace[1])


@pytest.mark.parametrize("module", STAGES)
def test_help_says_what_a_stage_reads_and_writes(module, capsys):
    with pytest.raises(SystemExit) as stop:
        run_stage(lambda args: None, import_module(module).get_args_parser(), ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m {module}" in text and "Reads" in text and "Writes" in text


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
    assert store.stems == data.unlabelled_stems(3, True, 42) and len(store.stems) == 12
    assert store.attributes["clearml_model_id"] == model_id
    u_net, _ = load_checkpoint(fetch_model(model_id).weights)
    pixels = np.asarray(Image.open(data.image_path(store.stems[4])), np.float32) / 255
    resized = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None, None], (96, 64), mode="bilinear")
    with torch.no_grad():
        expected = u_net((resized - data.description.mean) / data.description.std)[0].sigmoid() > 0.5
    assert (store.mask(store.stems[4]) == expected.numpy()).mean() > 0.999  # rounding at the threshold
    monkeypatch.setattr(save_segmentations, "predict", None)  # a rerun predicts nothing
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
    monkeypatch.setattr(save_refined_segmentations, "refine_images", None)  # a rerun refines nothing
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


def test_random_walk_refuses_an_unknown_selection(capsys):
    line = error_line(capsys, save_random_walk_segmentations, "--dataset", "phantom", "--ccl_selection", "widest")
    assert "--ccl_selection" in line and "'widest'" in line and "largest" in line


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


def test_the_mean_teacher_goes_on_from_the_initial_model(workplace):
    data_dir, model_id = workplace
    result = fetch_model(run(training_with_mean_teacher, data_dir, *N, "--epochs", "2", "--batch_size", "4"))
    assert (result.parameters["stage"], result.parameters["initial_model_id"]) == ("mean_teacher", model_id)
    initial, teacher = (load_checkpoint(each.weights, torch.device("cpu"))[0].state_dict()
                        for each in (fetch_model(model_id), result))
    moved = max((initial[key] - teacher[key]).abs().max().item() for key in initial)
    assert 0 < moved < 0.1  # 6 steps of 0.4 % each


@pytest.mark.parametrize(("stage", "arguments"), [(training_on_pseudo_labels, ["--pseudo_label", "raw"]),
                                                  (training_with_mean_teacher, [])])
def test_positive_weights_are_bounded_where_asked(workplace, monkeypatch, stage, arguments):
    data_dir, _ = workplace
    run(save_segmentations, data_dir, *N)
    bounds = []
    monkeypatch.setattr(stage, "fit", lambda *given: bounds.append(given[3].pos_weight.max().item()))
    for bound in ([], ["--max_positive_weight", "3"]):
        run(stage, data_dir, *N, *arguments, *bound, "--batch_size", "4")
    assert bounds == [pytest.approx(max(open_dataset("phantom", data_dir).description.positive_weights)), 3]


def test_masks_with_which_sam_agrees_enter_the_mean_teacher_as_labels(workplace, capsys):
    data_dir, model_id = workplace
    path = run(add_sam_agreement, data_dir, *N)
    assert path == mask_file(data_dir, model_id, "agreement_demo")
    store = MaskStore(path, open_dataset("phantom", data_dir).description.labels)
    agreement = np.array([np.nanmean(store.estimated_dice(stem)) for stem in store.stems])
    assert len(agreement) == 12 and ((agreement >= 0) & (agreement <= 1)).all()
    threshold = float(np.sort(agreement)[-4])
    result = run(training_with_mean_teacher, data_dir, *N, "--epochs", "1", "--batch_size", "4", "--reliable",
                 str(threshold))
    assert "4 of 12 unlabelled images enter as labelled" in capsys.readouterr().out
    assert fetch_model(result).parameters["reliable"] == threshold


def test_evaluation_of_saved_masks_equals_a_computation_by_hand(workplace, refined, tmp_path):
    data_dir, model_id = workplace
    summary = run(evaluate, data_dir, "--split", "unlabelled", "--pseudo_label", "sam", "--model_id", model_id,
                  "--results_dir", str(tmp_path), "--surface_tolerance", "1.5")
    data = open_dataset("phantom", data_dir, (96, 64))
    store = MaskStore(refined, data.description.labels)
    images = []
    for stem in store.stems:
        truth, mask = data.mask(stem), store.mask(stem)
        classes = [200 * (t & m).sum() / (t.sum() + m.sum()) for t, m in zip(truth, mask, strict=True) if t.any()]
        images.append(np.mean(classes))
    assert summary.mean == pytest.approx(np.mean(images), abs=1e-3)
    assert summary.std == pytest.approx(np.std(images, ddof=1), abs=1e-3)
    assert summary.count == 12
    folder = tmp_path / "phantom" / model_id / f"unlabelled_{refined.stem}"
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


def test_evaluation_refines_a_labelled_split_on_the_spot(workplace, tmp_path):
    data_dir, model_id = workplace
    arguments = ("--model_id", model_id, "--split", "val", "--results_dir", str(tmp_path))
    raw, refined = (run(evaluate, data_dir, *arguments, "--pseudo_label", label) for label in ("raw", "sam"))
    assert raw.count == refined.count == 10
    assert raw.mean != refined.mean


def test_images_left_out_of_averages_stay_in_the_table(workplace, tmp_path, monkeypatch, capsys):
    data_dir, model_id = workplace
    stem = open_dataset("phantom", data_dir).stems("test")[2]
    original = evaluate.load_model_and_data

    def with_one_left_out(*args, **kwargs):
        model, u_net, trained_on, data = original(*args, **kwargs)
        object.__setattr__(data.description, "left_out_of_averages", (stem,))
        return model, u_net, trained_on, data

    monkeypatch.setattr(evaluate, "load_model_and_data", with_one_left_out)
    assert run(evaluate, data_dir, "--model_id", model_id, "--results_dir", str(tmp_path)).count == 9
    assert f"without {stem}" in capsys.readouterr().out
    assert stem in (tmp_path / "phantom" / model_id / "test_raw" / "dice.csv").read_text()


def test_pipeline_passes_ids_and_skips_what_is_there(workplace, tmp_path, capsys):
    data_dir, _ = workplace
    arguments = (*N, *SMALL, "--seed", "7", "--results_dir", str(tmp_path))
    rows = run(run_pipeline, data_dir, *arguments)
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [f"{row['what']}/{row['split']}" for row in table] == [
        "initial/test", "raw/unlabelled", "refined/unlabelled", "final/test"]
    assert [int(row["n_images"]) for row in table] == [10, 12, 12, 10]
    assert [float(row["dice_mean"]) for row in table] == pytest.approx([s.mean for _, _, s in rows], abs=1e-3)
    models = find_models(seed=7, dataset="phantom")
    assert [model.parameters["stage"] for model in models] == ["final", "initial"]
    assert models[0].parameters["initial_model_id"] == models[1].id
    assert "demo" in capsys.readouterr().out
    assert run(run_pipeline, data_dir, *arguments) == rows
    assert len(find_models(seed=7, dataset="phantom")) == 2
    others = [run(run_pipeline, data_dir, *arguments, "--pseudo_label", label) for label in ("raw", "random_walk")]
    assert [[what for what, _, _ in each] for each in others] == [["initial", "raw", "final"],
                                                                  ["initial", "raw", "refined", "final"]]
    assert len(find_models(seed=7, dataset="phantom", stage="initial")) == 1


def error_line(capsys, stage, *arguments) -> str:
    """Runs a stage that must stop with exit code 2 and returns its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_stage(stage.main, stage.get_args_parser(), list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def graz(phantom_data_dir, tmp_path, monkeypatch):
    """A data folder in the layout of GRAZPEDWRI-DX, with the phantoms in the place of its radiographs."""
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "data" / "graz"
    shutil.copytree(phantom_data_dir / "phantom" / "img_only_front_all_left", folder / "img_only_front_all_left")
    (folder / "annotations").mkdir()
    train = etree.parse(ROOT / "annotations_train.xml").getroot().findall("image")
    parts = {"train1": [image for image in train if image.get("subset") == "Train"][:20],
             "train2": [image for image in train if image.get("subset") == "Train"][20:],
             "val": [image for image in train if image.get("subset") == "Validation"],
             "test": etree.parse(ROOT / "annotations_test.xml").getroot().findall("image")}
    for name, images in parts.items():
        root = etree.Element("annotations")
        etree.SubElement(root, "version").text = "1.1"
        root.extend(images)
        etree.ElementTree(root).write(folder / "annotations" / f"annotations_{name}.xml")
    stems = [path.stem for path in (folder / "img_only_front_all_left").glob("*.png")]
    rows = [f"{stem},{'R' if 'WRI-R' in stem else 'L'},1" for stem in stems]
    (folder / "dataset.csv").write_text("\n".join(["filestem,laterality,projection", *rows]), encoding="utf-8-sig")
    return folder


def test_paper_commands_run_on_graz(graz, capsys):
    def stage(module, *arguments):
        return module.main(module.get_args_parser().parse_args(["--data_dir", str(graz.parent), *arguments]))

    initial = stage(training, *SMALL)
    assert "successively_training_files_order.csv" in capsys.readouterr().err  # sorted stems are taken, and it says so
    raw = stage(save_segmentations)
    assert "500" in capsys.readouterr().err
    refined = stage(save_refined_segmentations, "--sam_type", "demo")
    final = stage(training_on_pseudo_labels, "--pseudo_label", "sam", "--prompt1st", "box", "--prompt2nd", "pos_points",
                  "neg_points", "--num_train_samples", "43", "--sam_type", "demo", "--epochs", "1", "--batch_size", "4")
    assert raw.parent == refined.parent == graz.parent / "seg_masks" / initial
    assert fetch_model(final).parameters["initial_model_id"] == initial
    assert stage(evaluate, "--model_id", final, "--results_dir", str(graz.parent)).count == 10


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda xml: xml.write_bytes(xml.read_bytes()[:2000]), "annotations_val.xml"),
    (lambda xml: xml.write_text("<html/>"), "annotations_val.xml"),
    (lambda xml: xml.unlink(), "annotations_val.xml"),
    (lambda xml: xml.write_text(xml.read_text().replace(' width="', ' width="1')), "pixels"),
    (lambda xml: next((xml.parents[1] / "img_only_front_all_left").glob("0044_*")).unlink(), "no such image"),
    (lambda xml: (xml.parents[1] / "dataset.csv").unlink(), "dataset.csv"),
])
def test_bad_annotations(graz, capsys, spoil, message):
    spoil(graz / "annotations" / "annotations_val.xml")
    assert message in error_line(capsys, training, "--data_dir", str(graz.parent), *SMALL)


PHANTOM = ("--dataset", "phantom")


def test_missing_data_folder(capsys, tmp_path):
    for stage in (training, run_pipeline):
        assert "make_phantoms" in error_line(capsys, stage, *PHANTOM, "--data_dir", str(tmp_path))
    line = error_line(capsys, training, "--data_dir", str(tmp_path))
    assert str(tmp_path / "graz") in line


def test_too_many_labelled_images(capsys, workplace):
    line = error_line(capsys, training, *PHANTOM, "--data_dir", str(workplace[0]), "--num_train_samples", "44")
    assert "43" in line


def test_gpu_that_is_not_there(capsys, workplace):
    assert "--gpu_id 99" in error_line(capsys, training, *PHANTOM, "--data_dir", str(workplace[0]), "--gpu_id", "99")


def test_models_that_are_not_there(capsys, workplace):
    data_dir, model_id = workplace
    arguments = (*PHANTOM, "--data_dir", str(data_dir))
    assert "offline-none" in error_line(capsys, save_segmentations, *arguments, "--model_id", "offline-none")
    assert model_id in error_line(capsys, save_segmentations, *arguments, "--num_train_samples", "40")
    assert model_id in error_line(capsys, evaluate, *arguments, "--num_train_samples", "40")


def test_model_of_other_labels(capsys, workplace, tmp_path, monkeypatch):
    data_dir, model_id = workplace
    weights = fetch_model(model_id).weights
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["training"]["labels"] = ("heart", *checkpoint["training"]["labels"][1:])
    kept = weights.read_bytes()
    try:
        torch.save(checkpoint, weights)
        line = error_line(capsys, save_segmentations, *PHANTOM, "--data_dir", str(data_dir), "--model_id", model_id)
        assert "heart" in line
        weights.write_bytes(b"no checkpoint")
        line = error_line(capsys, save_segmentations, *PHANTOM, "--data_dir", str(data_dir), "--model_id", model_id)
        assert str(weights) in line
    finally:
        weights.write_bytes(kept)


def test_masks_that_are_missing_or_of_other_labels(capsys, workplace):
    data_dir, model_id = workplace
    arguments = (*PHANTOM, "--data_dir", str(data_dir), "--model_id", model_id, "--prompt1st", "pos_points")
    line = error_line(capsys, training_on_pseudo_labels, *arguments)
    assert "sam_pos_points_refine" in line and "save_refined_segmentations" in line
    kind = "sam_pos_points_refine_pos_points_neg_points_highest_probability_released_demo"
    with MaskWriter(mask_file(data_dir, model_id, kind), ("heart",), {}) as writer:
        writer.write("1", np.zeros((1, 96, 64), bool))
    assert "heart" in error_line(capsys, training_on_pseudo_labels, *arguments)


def test_more_images_in_a_batch_than_there_are(capsys, workplace, refined):
    line = error_line(capsys, training_on_pseudo_labels, *PHANTOM, "--data_dir", str(workplace[0]), *N)
    assert "--batch_size" in line


@pytest.mark.parametrize("arguments", [["--prompt1st", "circle"], ["--prompt2nd", "circle"]])
def test_unknown_prompt(capsys, workplace, arguments):
    data_dir, _ = workplace
    for stage in (save_refined_segmentations, training_on_pseudo_labels, run_pipeline):
        line = error_line(capsys, stage, *PHANTOM, "--data_dir", str(data_dir), *N, *arguments)
        assert "circle" in line and "pos_points" in line


def test_sam_checkpoint_that_is_missing_foreign_or_not_one(capsys, workplace, tmp_path):
    data_dir, _ = workplace
    arguments = (*PHANTOM, "--data_dir", str(data_dir), *N)
    line = error_line(capsys, save_refined_segmentations, *arguments, "--sam_type", "vit_h")
    assert "download_checkpoint vit_h" in line
    foreign = tmp_path / "weights.pt"
    foreign.write_bytes(b"no checkpoint")
    for stage in (import_module("scripts.generate_img_embeddings"), save_refined_segmentations):
        line = error_line(capsys, stage, *arguments, "--sam_type", "vit_b", "--sam_checkpoint", str(foreign))
        assert "weights.pt: not a readable checkpoint" in line
        demo = str(default_checkpoint("demo", data_dir))
        line = error_line(capsys, stage, *arguments, "--sam_type", "vit_b", "--sam_checkpoint", demo)
        assert "not a checkpoint of SAM type vit_b" in line


def test_embeddings_of_another_checkpoint(capsys, workplace, refined, tmp_path):
    data_dir, _ = workplace
    copy = tmp_path / "other_name.safetensors"
    shutil.copy(default_checkpoint("demo", data_dir), copy)
    line = error_line(capsys, save_refined_segmentations, *PHANTOM, "--data_dir", str(data_dir), *N, "--prompt1st",
                      "box", "pos_points", "--sam_checkpoint", str(copy))
    assert "other_name.safetensors" in line and "was computed with the checkpoint demo_sam.safetensors" in line


def test_unreadable_image(capsys, workplace):
    data_dir, _ = workplace
    path = open_dataset("phantom", data_dir).image_path(open_dataset("phantom", data_dir).stems("train")[0])
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:100])
        assert path.name in error_line(capsys, training, *PHANTOM, "--data_dir", str(data_dir), *N, *SMALL)
    finally:
        path.write_bytes(kept)


def test_importing_a_stage_runs_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python", "--no-such-argument"])
    for module in STAGES:
        sys.modules.pop(module, None)
        assert import_module(module).main


def test_paper_commands_parse():
    commands = {
        training: ["--gpu_id", "0"],
        save_segmentations: [],
        save_refined_segmentations: [],
        training_on_pseudo_labels: ["--gpu_id", "0", "--pseudo_label", "sam", "--prompt1st", "box", "--prompt2nd",
                                    "pos_points", "neg_points", "--num_train_samples", "43"],
    }
    for stage, arguments in commands.items():
        args = stage.get_args_parser().parse_args(arguments)
        assert args.dataset == "graz" and args.num_train_samples == 43
    args = training.get_args_parser().parse_args([])
    assert (args.epochs, args.lr, args.batch_size, args.data_sample_per_epoch, args.data_aug, args.seed,
            args.base_width, args.n_last_channel, args.lr_scheduler) == (350, 1e-3, 16, 48, 0.03, 42, 64, 64, "cosine")


def test_two_commands_of_the_readme():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    assert "make demo" in readme and "make test" in readme
    assert "\ndemo:" in makefile and "\ntest:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
