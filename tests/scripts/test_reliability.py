"""What stages promise about data that change, images that are bad, and folders that can't be written: on one trained
model."""
import csv
import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from scripts import (
    evaluate,
    generate_img_embeddings,
    run_study,
    save_refined_segmentations,
    save_segmentations,
    search_refinement,
    verify,
)
from scripts.study.methods import METHODS
from tests.stage_runs import SMALL, N, run
from unet_training import models, training, training_on_pseudo_labels
from unet_training.checkpoint import load_checkpoint
from unet_training.models import ModelOptions, TrainedModel, choose_record
from utils import left_out
from utils.cli import run_stage
from utils.datasets.annotated import load_image, open_dataset
from utils.errors import InputError
from utils.left_out import FILE
from utils.mask_store import MaskStore
from utils.provenance import note_arguments
from utils.records import write_record
from utils.tracking.models import fetch_model

pytestmark = pytest.mark.slow  # they share a trained model
FINAL = ("--pseudo_label", "raw", "--epochs", "1", "--batch_size", "4")


@pytest.fixture
def place(workplace, tmp_path):
    """A copy of the workplace that may be spoiled, and its data set."""
    folder = shutil.copytree(workplace[0], tmp_path / "data")
    return folder, open_dataset("phantom", folder, (96, 64))


def predict(model_id: str, data, stem: str) -> np.ndarray:
    network, _ = load_checkpoint(fetch_model(model_id).weights)
    with torch.inference_mode():
        return (network(torch.from_numpy(load_image(data.image_path(stem), data.description))[None])[0] > 0).numpy()


def stage_end(capsys, stage, data_dir, *arguments) -> tuple[int, str]:
    """Exit code and last line on standard error of a stage."""
    given = ["--dataset", "phantom", "--data_dir", str(data_dir), *arguments]
    with pytest.raises(SystemExit) as stop:
        run_stage(stage.main, stage.get_args_parser(), given)
    return stop.value.code, capsys.readouterr().err.splitlines()[-1]


def test_a_replaced_image_gets_new_masks_and_embeddings_and_another_training(place, workplace):
    folder, data = place
    first = run(save_refined_segmentations, folder, *N)
    raw = run(save_segmentations, folder, *N)
    stem, other = MaskStore(raw, data.description.labels).stems[:2]
    before = run(training_on_pseudo_labels, folder, *N, *FINAL)
    path, times = data.image_path(stem), data.image_path(stem).stat()
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.ascontiguousarray(pixels[::-1, ::-1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    stores = []
    for stage, file in ((save_segmentations, raw), (save_refined_segmentations, first)):
        old = MaskStore(file, data.description.labels)
        kept, replaced = old.mask(other), old.mask(stem)
        run(stage, folder, *N)
        new = MaskStore(file, data.description.labels)
        assert (new.mask(stem) != replaced).any() and (new.mask(other) == kept).all()
        stores.append(new)
    np.testing.assert_array_equal(stores[0].mask(stem), predict(workplace[1], data, stem))
    after = run(training_on_pseudo_labels, folder, *N, *FINAL)
    digests = [fetch_model(each).parameters["data_sha256"] for each in (before, after)]
    assert digests[0] != digests[1]


def test_masks_of_an_image_that_is_read_in_another_way_are_made_anew(place, workplace, monkeypatch):
    (folder, data), own = place, (*N, "--model_id", workplace[1])
    raw = run(save_segmentations, folder, *own)
    monkeypatch.setattr(type(data.description), "reading", "stored_inverted")
    with pytest.raises(InputError, match=r"read as 'float32', by now they are as 'stored_inverted'.*--transfer"):
        run(save_segmentations, folder, *own)
    origins = MaskStore(raw, data.description.labels).images
    run(save_segmentations, folder, *own, "--transfer")
    assert all(origin != origins[stem] for stem, origin in MaskStore(raw, data.description.labels).images.items())


def test_a_model_of_another_data_set_needs_a_word(graz, workplace, monkeypatch):
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(workplace[0].parent / "runs"))
    arguments = ["--dataset", "graz", "--data_dir", str(graz.parent), "--model_id", workplace[1]]
    parser = save_segmentations.get_args_parser()
    with pytest.raises(InputError, match=r"trained on data set phantom, not on graz; .*--transfer"):
        save_segmentations.main(parser.parse_args(arguments))
    assert save_segmentations.main(parser.parse_args([*arguments, "--transfer"])).parent.name == workplace[1]


def test_the_model_that_is_meant_is_of_these_images_and_of_the_seed_if_that_is_given(place, workplace, capsys):
    folder, data = place
    ours = run(training, folder, *N, *SMALL, "--seed", "7")
    newest = run(training, folder, *N, *SMALL, "--seed", "8")
    for given, meant in (((), newest), (("--seed", "7"), ours), (("--seed", "42"), workplace[1])):
        assert run(save_segmentations, folder, *N, *given).parent.name == meant
        assert f"model: {meant}" in capsys.readouterr().out
    with pytest.raises(InputError, match="seed 9"):
        run(save_segmentations, folder, *N, "--seed", "9")
    path = data.image_path(data.stems("train")[0])
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:, ::-1])
    with pytest.raises(InputError, match=f"trained on other images or masks than those in .*{newest}"):
        run(save_segmentations, folder, *N)
    assert run(save_segmentations, folder, *N, "--model_id", newest).parent.name == newest


def test_a_later_stage_takes_the_images_of_the_masks(place, monkeypatch, capsys):
    folder, data = place
    monkeypatch.setattr("utils.datasets.annotated.UNLABELED_SAMPLE", 6)
    seven = run(training, folder, *N, *SMALL, "--seed", "7")
    raw = run(save_segmentations, folder, *N, "--model_id", seven, "--sample_seed", "1")
    made = MaskStore(raw, data.description.labels).stems
    assert len(made) == 6 and made == data.unlabeled_stems(3, True, 1) != data.unlabeled_stems(3, True, 42)
    run(training_on_pseudo_labels, folder, *N, *FINAL, "--model_id", seven, "--seed", "1")
    assert "has masks of 6 other unlabeled images" in capsys.readouterr().out
    others = ("--model_id", seven, "--sample_seed", "2")
    with pytest.raises(InputError, match=r"--sample_seed"):
        run(training_on_pseudo_labels, folder, *N, *FINAL, *others)
    run(save_segmentations, folder, *N, *others)  # as the message says
    run(training_on_pseudo_labels, folder, *N, *FINAL, *others)


def test_one_bad_image_stops_no_stage_and_is_told_at_the_end(place, workplace, monkeypatch, capsys):
    folder, data = place
    monkeypatch.setattr(left_out, "_left_out", {})
    stems = data.unlabeled_stems(3, True, 42)
    good = data.image_path(stems[4]).read_bytes()
    data.image_path(stems[4]).write_bytes(good[:200])
    arguments = (*N, "--model_id", workplace[1])
    listed = folder / "phantom" / FILE
    for stage, more in ((save_segmentations, ()), (generate_img_embeddings, ()), (save_refined_segmentations, ()),
                        (training_on_pseudo_labels, FINAL)):
        own = N if stage is generate_img_embeddings else arguments
        code, line = stage_end(capsys, stage, folder, *own, *more)
        assert code == 3 and "done, but 1 images were left out" in line and str(listed) in line
    with listed.open(newline="") as file:
        assert [row["stem"] for row in csv.DictReader(file)] == [stems[4]]
    store = MaskStore(folder / "seg_masks" / workplace[1] / "raw.h5", data.description.labels)
    assert set(store.stems) == set(stems) - {stems[4]}
    monkeypatch.setattr(left_out, "_left_out", {})
    data.image_path(stems[4]).write_bytes(good)
    run(save_segmentations, folder, *arguments)
    assert not listed.exists() and left_out.describe_left_out() == ""
    assert len(MaskStore(store.path, data.description.labels).stems) == len(stems)


def test_what_stages_make_may_lie_elsewhere_than_the_data(place, workplace, tmp_path, monkeypatch):
    folder, _ = place
    shutil.rmtree(folder / "seg_masks", ignore_errors=True)
    shutil.rmtree(folder / "phantom" / "sam_embeddings", ignore_errors=True)
    before = sorted(folder.rglob("*"))
    arguments = (*N, "--model_id", workplace[1], "--derived_dir", str(tmp_path / "derived"))
    refined = run(save_refined_segmentations, folder, *arguments)
    assert refined.is_relative_to(tmp_path / "derived") and sorted(folder.rglob("*")) == before
    run(save_segmentations, folder, *arguments)
    run(training_on_pseudo_labels, folder, *arguments, *FINAL)
    assert sorted(folder.rglob("*")) == before
    assert (tmp_path / "derived" / "phantom" / "sam_embeddings" / "demo").is_dir()


def test_a_read_only_folder_does_where_all_is_there(place, workplace, monkeypatch):
    folder, _ = place
    made = [run(stage, folder, *N, "--model_id", workplace[1]) for stage in (save_segmentations,
                                                                             save_refined_segmentations)]
    for path in folder.rglob("*.json"):
        path.unlink()

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("touch", "mkdir", "write_bytes", "unlink", "replace"):
        monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    again = [run(stage, folder, *N, "--model_id", workplace[1]) for stage in (save_segmentations,
                                                                              save_refined_segmentations)]
    assert again == made


def test_a_final_training_has_real_workers_and_the_same_weights(place, workplace):
    folder, _ = place
    run(save_segmentations, folder, *N, "--model_id", workplace[1])
    weights = []
    for workers in ("0", "2"):
        final = run(training_on_pseudo_labels, folder, *N, *FINAL, "--model_id", workplace[1], "--num_workers", workers)
        weights.append(load_checkpoint(fetch_model(final).weights)[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_study_accumulates_and_is_written_as_it_goes(place, tmp_path, monkeypatch):
    folder, _ = place
    results = tmp_path / "results"
    arguments = ("--num_train_samples", "3", *SMALL, "--epochs", "1", "--results_dir", str(results))

    def measured() -> list[tuple[str, str]]:
        with (results / "study.csv").open(newline="") as file:
            return list(dict.fromkeys((row["method"], row["seed"]) for row in csv.DictReader(file)))

    run(run_study, folder, *arguments, "--methods", "initial", "--seeds", "42")
    run(run_study, folder, *arguments, "--methods", "initial", "--seeds", "1")
    assert measured() == [("initial", "42"), ("initial", "1")]
    monkeypatch.setitem(METHODS, "raw", replace(METHODS["raw"], run=interrupt))
    with pytest.raises(KeyboardInterrupt):
        run(run_study, folder, *arguments, "--methods", "u_net_random_walk", "raw", "--seeds", "1")
    assert measured() == [("initial", "42"), ("initial", "1"), ("u_net_random_walk", "1")]
    manifest = json.loads((results / "manifest.json").read_text())
    assert [(each["method"], each["seed"]) for each in manifest["results"]] == [
        ("initial", 42), ("initial", 1), ("u_net_random_walk", 1)]
    with pytest.raises(InputError, match=r"were made with --lr 0\.001, not 0\.002; name another --results_dir"):
        run(run_study, folder, *arguments, "--methods", "initial", "--lr", "0.002")
    verify.main(verify.get_args_parser().parse_args([str(results)]))  # nothing has changed


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("arguments", [["--seed", "7"], ["--pseudo_label", "nonsense"], ["--data", "x"]])
def test_a_study_takes_no_argument_that_it_does_not_have(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run_study.get_args_parser().parse_args(arguments)
    assert stop.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_a_search_starts_anew_where_its_inputs_are_others(place, workplace, tmp_path, monkeypatch):
    folder, data = place
    tried = []
    monkeypatch.setattr(search_refinement, "prepare_walk", lambda model, stems: (
        [np.zeros((17, 96, 64))] * len(stems), lambda options: tried.append(1) or [np.zeros((17, 96, 64), bool)] * 10))
    arguments = (*N, "--model_id", workplace[1], "--refiner", "random_walk", "--no-figures", "--results_dir",
                 str(tmp_path / "results"))
    for trials, new in (("2", 2), ("3", 1), ("3", 0)):
        tried.clear()
        assert len(run(search_refinement, folder, *arguments, "--trials", trials)) == int(trials)
        assert len(tried) == new
    path = data.image_path(data.stems("val")[0])
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:, ::-1])
    tried.clear()
    assert len(run(search_refinement, folder, *arguments, "--trials", "2")) == 2 and len(tried) == 2


def test_an_artefact_is_followed_back_to_its_images(place, workplace, tmp_path, capsys):
    folder, data = place
    note_arguments({"dataset": "phantom", "data_dir": folder})  # as `run_stage` does, which these stages don't run by
    raw, refined = (run(stage, folder, *N, "--model_id", workplace[1]) for stage in (save_segmentations,
                                                                                     save_refined_segmentations))
    final = run(training_on_pseudo_labels, folder, *N, *FINAL, "--model_id", workplace[1])
    run(evaluate, folder, "--model_id", final, "--results_dir", str(tmp_path / "results"))
    evaluation, = tmp_path.glob("results/phantom/*/test_raw")
    stem = data.unlabeled_stems(3, True, 42)[0]
    embedding = folder / "phantom" / "sam_embeddings" / "demo" / f"{stem}.h5"

    def verified(artefact, data_dir=folder) -> tuple[bool, str]:
        capsys.readouterr()
        try:
            verify.main(verify.get_args_parser().parse_args([str(artefact), "--data_dir", str(data_dir)]))
            return True, capsys.readouterr().out
        except SystemExit as end:
            assert end.code == 1
            return False, capsys.readouterr().out

    artefacts = (raw, refined, embedding, evaluation, final)
    for artefact in artefacts:
        same, told = verified(artefact)
        assert same and "nothing has changed" in told and "was made by `python" in told, told
    assert f"unchanged: model {workplace[1]}" in verified(evaluation)[1]  # the final one's initial one
    kept = data.image_path(stem).read_bytes()
    cv2.imwrite(str(data.image_path(stem)), np.zeros((1120, 640), np.uint8))
    for artefact in artefacts:
        same, told = verified(artefact)
        assert not same and stem in told, told
    data.image_path(stem).write_bytes(kept)
    assert all(verified(artefact)[0] for artefact in artefacts)
    weights = fetch_model(workplace[1]).weights
    original = weights.read_bytes()
    try:
        weights.write_bytes(original[:-1] + b"x")
        for artefact in (raw, final, evaluation):
            same, told = verified(artefact)
            assert not same and "damaged" in told, told
    finally:
        weights.write_bytes(original)
    (evaluation / "dice.csv").write_text("stem,mean\n")
    assert "its table dice.csv is another" in verified(evaluation)[1]


def test_a_damaged_model_is_left_out_and_named(place, capsys):
    folder, _ = place
    record = fetch_model(run(training, folder, *N, *SMALL, "--seed", "5")).weights.with_name("model.json")
    record.write_text("")
    assert run(save_segmentations, folder, *N).parent.name != record.parent.name
    line = next(line for line in capsys.readouterr().err.splitlines() if "left out" in line)
    assert str(record) in line
    write_record(record, {})
    assert run(save_segmentations, folder, *N).parent.name != record.parent.name
    with pytest.raises(InputError, match="there is no such model"):
        fetch_model(record.parent.name)


def test_models_say_what_they_are_of(workplace):
    data = open_dataset("phantom", workplace[0])
    model = TrainedModel.load(choose_record(data, ModelOptions(num_train_samples=3)), data, torch.device("cpu"))
    assert model.training.dataset == "phantom" and model.training.reading == data.description.reading
    assert models.data_parameters(data, data.stems("train", 3))["data_sha256"] == model.record.parameters["data_sha256"]
