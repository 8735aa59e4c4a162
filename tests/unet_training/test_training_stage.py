"""Which trained model arguments mean."""
import cv2
import numpy as np
import pytest
import torch

from tests.stage_runs import SMALL, N, run
from unet_training import training, training_on_pseudo_labels, training_stage, training_with_mean_teacher
from unet_training.checkpoint import load_checkpoint
from unet_training.training_stage import TrainingStage, fingerprint, identity, train_if_missing
from utils.datasets.description import OWN
from utils.errors import InputError
from utils.files import write_png
from utils.tracking.models import Model, fetch_model

CPU = torch.device("cpu")


@pytest.fixture
def stage_of(monkeypatch):
    """The training that a stage would run."""
    def make(module, *arguments: str) -> TrainingStage:
        monkeypatch.setattr(module, "train", lambda stage, device: stage)
        return module.main(module.get_args_parser().parse_args(arguments))
    return make


@pytest.fixture
def is_found_again(monkeypatch):
    """Whether a model, trained with these parameters, stands for a training."""
    def check(parameters: dict, stage: TrainingStage) -> bool:
        made = Model("made", parameters, (), (), "", 0.0, lambda: None)
        monkeypatch.setattr(training_stage, "find_models", lambda stage: [made] * (stage == parameters["stage"]))
        monkeypatch.setattr(training_stage, "_train", lambda stage, device: "new")
        return train_if_missing(stage, CPU) == "made"
    return check


@pytest.fixture
def mine(own):
    """Own data with all keys, and the arguments that name them."""
    folder = own[0] / "mine"
    (folder / OWN).write_text("mean = 0.5\nstd = 0.25\npos_weight = [3.0, 4.0]\n" + (folder / OWN).read_text())
    return folder, ("--dataset", "mine", "--data_dir", str(own[0]), "--num_train_samples", "2")


def test_a_model_older_than_an_option_was_trained_with_its_default(stage_of, is_found_again, mine):
    _, arguments = mine
    older = stage_of(training, *arguments, "--lr", "0.1").parameters
    del older["bf16"]
    assert is_found_again(older, stage_of(training, *arguments, "--lr", "0.1"))
    assert not is_found_again(older, stage_of(training, *arguments, "--lr", "0.1", "--bf16"))
    assert not is_found_again(older, stage_of(training, *arguments, "--lr", "0.2"))


def test_all_labeled_images_are_a_number_of_them(stage_of, is_found_again, mine):
    _, arguments = mine
    everything = stage_of(training, *arguments, "--num_train_samples", "-1")
    assert everything.parameters["num_train_samples"] == 4
    assert is_found_again(everything.parameters, stage_of(training, *arguments, "--num_train_samples", "4"))


def test_without_a_number_all_of_own_data_and_43_of_the_papers_are_labeled(stage_of, mine, graz):
    _, arguments = mine
    assert stage_of(training, *arguments[:-2]).parameters["num_train_samples"] == 4
    ours = stage_of(training, "--data_dir", str(graz.parent))
    everything = stage_of(training, "--data_dir", str(graz.parent), "--num_train_samples", "43")
    assert ours.parameters == everything.parameters and len(ours.stems) == 43


@pytest.mark.slow
def test_a_training_starts_from_an_earlier_network(workplace):
    data_dir, model_id = workplace
    own = (*N, *SMALL, "--data_aug", "0", "--lr", "1e-30")  # which changes no weight
    started = fetch_model(run(training, data_dir, *own, "--start_from", model_id))
    before, after = (load_checkpoint(model.weights, CPU)[0] for model in (fetch_model(model_id), started))
    for name, weights in before.named_parameters():
        torch.testing.assert_close(weights, after.get_parameter(name), rtol=0, atol=1e-20)
    assert started.parameters["start_from"] == model_id
    with pytest.raises(InputError, match="its base_width is 4, not 8; give --base_width 4"):
        run(training, data_dir, *own, "--base_width", "8", "--start_from", model_id)


def test_the_authors_names_of_arguments_mean_the_same(stage_of, mine):
    _, arguments = mine
    named = stage_of(training, *arguments, "--no-lr_scheduler", "--architecture", "unet", "--weight_decay", "0.1")
    ours = stage_of(training, *arguments, "--lr_scheduler", "constant", "--weight_decay", "0.1")
    assert named.parameters == ours.parameters and ours.parameters["lr_scheduler"] == "constant"
    optimizer = ours.schedule.optimizer(torch.nn.Linear(1, 1))
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


SETTINGS = {"sam": ("--prompt1st", "pos_points"), "random_walk": ("--random_walk", "active"),
            "nnunet": ("--nnunet_epochs", "3")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", *SETTINGS])
def test_only_the_settings_of_its_own_pseudo_labels_make_another_final_model(stage_of, is_found_again, workplace, kind,
                                                                             monkeypatch):
    data_dir, _ = workplace  # where no masks were saved
    monkeypatch.setattr(training_on_pseudo_labels, "open_saved_masks", lambda labels, model: None)
    monkeypatch.setattr(training_on_pseudo_labels, "choose_stems",
                        lambda masks, initial, selection: initial.unlabeled_stems(selection))
    own = ("--dataset", "phantom", "--data_dir", str(data_dir), *N, "--pseudo_label", kind)
    made = stage_of(training_on_pseudo_labels, *own).parameters
    for other, setting in SETTINGS.items():
        assert is_found_again(made, stage_of(training_on_pseudo_labels, *own, *setting)) == (other != kind)
    cleaning = is_found_again(made, stage_of(training_on_pseudo_labels, *own, "--ccl_selection", "none"))
    assert cleaning == (kind in ("raw", "nnunet"))


@pytest.mark.slow
def test_sam_makes_another_mean_teacher_only_where_it_is_asked(stage_of, is_found_again, workplace):
    data_dir, _ = workplace
    for reliable, same in (((), True), (("--reliable",), False)):
        own = ("--dataset", "phantom", "--data_dir", str(data_dir), *N, *reliable)
        made = stage_of(training_with_mean_teacher, *own).parameters
        assert is_found_again(made, stage_of(training_with_mean_teacher, *own, "--sam_type", "vit_b")) == same
        assert not is_found_again(made, stage_of(training_with_mean_teacher, *own, "--alpha", "0.9"))


@pytest.mark.slow
def test_where_data_lie_and_how_they_are_loaded_is_no_part_of_a_training(stage_of, workplace, tmp_path):
    data_dir, _ = workplace
    own = ("--dataset", "phantom", *N)
    here = stage_of(training, *own, "--data_dir", str(data_dir))
    (tmp_path / "moved").symlink_to(data_dir)
    moved = stage_of(training, *own, "--data_dir", str(tmp_path / "moved"), "--infer_batch_size", "3",
                     "--num_workers", "2")
    assert fingerprint(here.parameters) == fingerprint(moved.parameters)


def test_other_data_are_another_training(stage_of, mine):
    folder, arguments = mine
    description = (folder / OWN).read_text()

    def parameters() -> dict:
        return stage_of(training, *arguments).parameters

    before = parameters()
    assert before == parameters() and before["input_size"] == [36, 60]
    (folder / OWN).write_text(description.replace("[3.0, 4.0]", "[3.0, 5.0]"))
    reweighted = parameters()
    replaced = np.zeros((36, 60), np.uint8)
    replaced[5:20] = 2
    write_png(folder / "masks" / "5.png", replaced)  # of a test image
    assert before != reweighted == parameters()
    write_png(folder / "masks" / "1.png", replaced)
    redrawn = parameters()
    write_png(folder / "img" / "0.png", replaced)
    assert reweighted != redrawn != parameters()


def test_an_image_counts_by_its_bytes(stage_of, is_found_again, mine):
    folder, arguments = mine
    made = stage_of(training, *arguments).parameters
    path = folder / "img" / "1.png"
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    path.write_bytes(cv2.imencode(".png", pixels[::-1])[1].tobytes().ljust(path.stat().st_size, b"\0"))
    assert not is_found_again(made, stage_of(training, *arguments))
    cv2.imwrite(str(path), pixels)
    assert is_found_again(made, stage_of(training, *arguments))


def test_a_file_counts_by_its_bytes_and_not_by_its_name_and_what_chose_images_not_at_all():
    here = {"lr": 1e-3, "sam_checkpoint": "a.pth", "sam_checkpoint_sha256": "0", "sample_seed": 1, "where": [],
            "split500": True, "include_annotated": False, "data_sha256": "1"}
    same = {**here, "sam_checkpoint": "b.pth", "sample_seed": 2, "split500": False}
    assert identity(here) == identity(same) == {"lr": 1e-3, "sam_checkpoint_sha256": "0", "data_sha256": "1"}
    assert identity(here) != identity({**here, "sam_checkpoint_sha256": "2"})


def test_fingerprint_tells_runs_apart():
    assert fingerprint({"lr": 1e-3, "n": 5}) == fingerprint({"n": 5, "lr": 1e-3})
    assert fingerprint({"lr": 1e-3, "n": 5}) != fingerprint({"lr": 1e-3, "n": 10})
