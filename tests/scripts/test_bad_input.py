"""What the stages say to bad input: one line, and exit code 2."""
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import (
    evaluate,
    run_pipeline,
    save_random_walk_segmentations,
    save_refined_segmentations,
    save_segmentations,
)
from segment_anything.checkpoints import identify
from segment_anything.registry import default_checkpoint
from tests.stage_runs import SMALL, N, run
from unet_training import training, training_on_pseudo_labels
from utils.cli import run_stage
from utils.datasets.annotated import open_dataset
from utils.mask_store import MaskWriter
from utils.paths import mask_file
from utils.records import read_record
from utils.tracking.models import fetch_model

pytestmark = pytest.mark.slow  # they share a trained model

PHANTOM = ("--dataset", "phantom")


def error_line(capsys, stage, *arguments) -> str:
    """Runs a stage that must stop with exit code 2 and returns its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_stage(stage.main, stage.get_args_parser(), list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_random_walk_refuses_an_unknown_selection(capsys):
    line = error_line(capsys, save_random_walk_segmentations, "--dataset", "phantom", "--ccl_selection", "widest")
    assert "--ccl_selection" in line and "'widest'" in line and "largest" in line


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


def test_missing_data_folder(capsys, tmp_path):
    for stage in (training, run_pipeline):
        assert "make_phantoms" in error_line(capsys, stage, *PHANTOM, "--data_dir", str(tmp_path))
    line = error_line(capsys, training, "--data_dir", str(tmp_path))
    assert str(tmp_path / "graz") in line


def test_too_many_labeled_images(capsys, workplace):
    line = error_line(capsys, training, *PHANTOM, "--data_dir", str(workplace[0]), "--num_train_samples", "44")
    assert "43" in line


def test_gpu_that_is_not_there(capsys, workplace, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
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
    record, checkpoint = weights.with_name("model.json"), torch.load(weights, weights_only=True)
    checkpoint["training"]["labels"] = ("heart", *checkpoint["training"]["labels"][1:])
    kept = weights.read_bytes()
    monkeypatch.setattr("utils.tracking.models.digest_file", lambda _: read_record(record, dict)["sha256"])
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


def test_masks_of_another_data_set_are_nobodys(capsys, workplace, tmp_path):
    """A model may be applied to several data sets, whose images have the same names."""
    data_dir, model_id = workplace
    own = ("--model_id", model_id, "--ccl_selection", "none")
    evaluation = (*own, "--split", "test", "--pseudo_label", "random_walk", "--results_dir", str(tmp_path))
    before = run(evaluate, data_dir, *evaluation)
    data = open_dataset("phantom", data_dir, (96, 64))
    path = mask_file(data_dir, model_id, "random_walk_released_none")
    attributes = {"clearml_model_id": model_id, "dataset": "second"}
    with MaskWriter(path, data.description.labels, attributes) as writer:
        for stem in (*data.stems("test"), *data.unlabeled_stems(3, True, 42)):
            writer.write(stem, np.zeros((len(data.description.labels), 96, 64), bool))
    try:
        assert run(evaluate, data_dir, *evaluation) == before
        for stage in (training_on_pseudo_labels, save_random_walk_segmentations):
            labels = ("--pseudo_label", "random_walk") if stage is training_on_pseudo_labels else ()
            assert "second" in error_line(capsys, stage, *PHANTOM, "--data_dir", str(data_dir), *own, *labels)
    finally:
        path.unlink()


def other_sam(data_dir: Path, folder: Path) -> Path:
    """A checkpoint of the phantoms' SAM type with other weights."""
    path = folder / "other.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(default_checkpoint("demo", data_dir)).items()}, path)
    return path


def test_masks_of_another_sam_are_not_trained_on(capsys, workplace, refined, tmp_path):
    data_dir, model_id = workplace
    other = other_sam(data_dir, tmp_path)
    arguments = (*PHANTOM, "--data_dir", str(data_dir), "--model_id", model_id, "--sam_checkpoint")
    line = error_line(capsys, training_on_pseudo_labels, *arguments, str(other))
    assert f"_demo_{identify(other).sha256[:12]}.h5: no such masks" in line
    assert "`--pseudo_label sam --sam_type demo`" in line
    assert "gone.pt" in error_line(capsys, training_on_pseudo_labels, *arguments, str(tmp_path / "gone.pt"))


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


def test_two_checkpoints_of_one_type_lie_side_by_side(capsys, workplace, refined, tmp_path):
    data_dir, model_id = workplace
    checkpoint = other_sam(data_dir, tmp_path)
    arguments = ("--model_id", model_id, "--sam_checkpoint", str(checkpoint))
    other = run(save_refined_segmentations, data_dir, *arguments)
    name = f"demo_{identify(checkpoint).sha256[:12]}"
    assert other != refined and other.stem == refined.stem.removesuffix("demo") + name
    embeddings = data_dir / "phantom" / "sam_embeddings"
    assert len(list((embeddings / name).glob("*.h5"))) == len(list((embeddings / "demo").glob("*.h5"))) == 12
    line = error_line(capsys, training_on_pseudo_labels, *PHANTOM, "--data_dir", str(data_dir), "--model_id", model_id,
                      "--prompt2nd")
    assert "`--pseudo_label sam --sam_type demo --sam_checkpoint other.safetensors`" in line


def test_unreadable_image(capsys, workplace):
    data_dir, _ = workplace
    path = open_dataset("phantom", data_dir).image_path(open_dataset("phantom", data_dir).stems("train")[0])
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:100])
        assert path.name in error_line(capsys, training, *PHANTOM, "--data_dir", str(data_dir), *N, *SMALL)
    finally:
        path.write_bytes(kept)
