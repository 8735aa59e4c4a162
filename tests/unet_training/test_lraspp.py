"""LR-ASPP on SAM's encoder against a computation by hand, its file, and the stages that it goes through."""
import copy
import dataclasses
import shutil

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from scripts import evaluate, save_segmentations
from segment_anything.registry import SAM_TYPES, default_checkpoint
from tests.small_sam import build_small_sam, register_small_sam
from unet_training import training, training_on_pseudo_labels, training_with_mean_teacher
from unet_training.checkpoint import Training, load_checkpoint, save_checkpoint
from unet_training.data import ImageDataset, LabeledDataset
from unet_training.epoch import bce_loss, train_epoch
from unet_training.models import ModelOptions, choose_record
from unet_training.networks import lraspp, stored_features
from unet_training.networks.lraspp import LrasppOnSam, LrasppOptions
from unet_training.networks.stored_features import StoredFeatures
from unet_training.prediction import predict
from unet_training.training_stage import train_if_missing
from utils.datasets.annotated import open_dataset
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.tracking.experiment import Experiment
from utils.tracking.models import fetch_model

CPU = torch.device("cpu")
SIZE, MEAN, STD = (50, 38), 0.35, 0.2
TRAINING = Training("phantom", ("radius", "ulna", "lunate"), SIZE, 0.4, 0.2)


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """A small SAM in which positions matter, as they do in trained ones."""
    path = register_small_sam(monkeypatch, tmp_path)
    state = torch.load(path, weights_only=True)
    for name in state:
        if "pos" in name:
            state[name].normal_(generator=torch.Generator().manual_seed(1))
    torch.save(state, path)
    return path


def build(checkpoint, seed=0, **options) -> LrasppOnSam:
    torch.manual_seed(seed)
    options = LrasppOptions(sam_type="small", sam_checkpoint=checkpoint, **options)
    model = LrasppOnSam.build(3, SIZE, MEAN, STD, options).eval()
    for value in model.state_dict().values():  # norms start as identity, which would hide a mix-up
        if value.is_floating_point():
            value.copy_(value + 0.1 * torch.rand_like(value))
    return model


def instance_norm(x, weights, name):
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / (x.var(dim=(2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"].view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)


def residual_block(x, weights, name, stride):
    inner = F.conv2d(x, weights[f"{name}.convs.0.weight"], stride=stride, padding=1)
    inner = F.leaky_relu(instance_norm(inner, weights, f"{name}.convs.1"), 0.01)
    inner = F.conv2d(inner, weights[f"{name}.convs.3.weight"], padding=1)
    inner = instance_norm(inner, weights, f"{name}.convs.4")
    if stride == 2:
        x = instance_norm(F.conv2d(x, weights[f"{name}.past.0.weight"], stride=2), weights, f"{name}.past.1")
    return F.leaky_relu(inner + x, 0.01)


def reference_head(low, weights):
    """Residual blocks and LR-ASPP from their descriptions alone, low-resolution logits."""
    high = residual_block(residual_block(low, weights, "blocks.0", 2), weights, "blocks.1", 1)
    branch = F.leaky_relu(instance_norm(F.conv2d(high, weights["branch.0.weight"]), weights, "branch.1"), 0.01)
    gate = F.conv2d(high.mean(dim=(2, 3), keepdim=True), weights["gate.1.weight"]).sigmoid()
    up = F.interpolate(branch * gate, low.shape[2:], mode="bilinear", align_corners=False)
    return (F.conv2d(low, weights["out_low.weight"], weights["out_low.bias"])
            + F.conv2d(up, weights["out_high.weight"], weights["out_high.bias"]))


def reference(image, checkpoint, weights, normalize=False, positions=False):
    """One normalized image (50, 38) -> logits (3, 50, 38), with the package's SAM; `positions`: with its embedding."""
    sam = build_small_sam()
    sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    grey = image * STD + MEAN
    pixels = torch.from_numpy(cv2.resize(grey.numpy(), (97, 128), interpolation=cv2.INTER_LINEAR)).expand(1, 3, -1, -1)
    if normalize:
        pixels = (255 * pixels - torch.tensor([120, 110, 100]).view(3, 1, 1)) / torch.tensor([50, 60, 70]).view(3, 1, 1)
    embedding = sam.image_encoder.pos_embed[:, :, :6]
    sam.image_encoder.pos_embed = torch.nn.Parameter(embedding) if positions else None
    logits = reference_head(sam.image_encoder(pixels), weights)[0]
    assert logits.shape == (3, 8, 6)
    cells = np.meshgrid((np.arange(50) + 0.5) * 8 / 50 - 0.5, (np.arange(38) + 0.5) * 6 / 38 - 0.5, indexing="ij")
    return torch.from_numpy(np.stack([map_coordinates(channel, cells, order=1, mode="nearest") for channel in logits]))


@torch.inference_mode()
@pytest.mark.parametrize("pixels", ["released", "normalized"])
def test_it_equals_a_computation_by_hand(checkpoint, pixels):
    model, images = build(checkpoint, n_last_channel=5, sam_pixels=pixels), torch.randn(2, 1, *SIZE)
    logits, weights, normalize = model(images), model.head.state_dict(), pixels == "normalized"
    assert model.head.out_high.in_channels == 5
    for image, ours in zip(images, logits, strict=True):
        torch.testing.assert_close(ours, reference(image[0], checkpoint, weights, normalize), rtol=1e-4, atol=1e-4)
        for other in ({"normalize": not normalize}, {"normalize": normalize, "positions": True}):
            assert (ours - reference(image[0], checkpoint, weights, **other)).abs().max() > 0.1


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_trains_the_head_alone(checkpoint, bf16):
    model = build(checkpoint)
    sam, head = (copy.deepcopy(each.state_dict()) for each in (model.encoder.sam, model.head))
    batches = [(torch.randn(2, 1, *SIZE), torch.rand(2, 3, *SIZE) < 0.3)]
    train_epoch(model, batches, bce_loss([1.0, 2.0, 3.0], CPU), torch.optim.SGD(model.parameters(), lr=1), CPU, 0.03,
                bf16)
    assert all(torch.equal(value, sam[key]) for key, value in model.encoder.sam.state_dict().items())
    assert all(parameter.grad is None for parameter in model.encoder.sam.parameters())
    assert not any(torch.equal(value, head[key]) for key, value in model.head.state_dict().items())


def test_its_file_holds_the_head_alone_and_rebuilds_it(checkpoint, tmp_path):
    model, path = build(checkpoint), tmp_path / "model.pt"
    save_checkpoint(path, model, TRAINING)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert stored.keys() == {f"head.{name}" for name in model.head.state_dict()}
    loaded, trained_on = load_checkpoint(path)
    images = torch.randn(1, 1, *SIZE)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    assert trained_on == TRAINING and not loaded.training
    assert copy.deepcopy(loaded).encoder is loaded.encoder  # a teacher needs no second SAM


def test_a_file_of_an_earlier_head_is_refused(checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, build(checkpoint), TRAINING)
    file = torch.load(path, weights_only=True)
    file["state_dict"]["head.lraspp.cbr.1.running_mean"] = torch.zeros(64)
    torch.save(file, path)
    with pytest.raises(InputError, match=r"model\.pt: its weights don't fit"):
        load_checkpoint(path)


def test_the_sam_that_it_stands_on_must_be_there(checkpoint, tmp_path, monkeypatch):
    path, elsewhere = tmp_path / "model.pt", tmp_path / "data"
    monkeypatch.setattr(lraspp, "DATA", elsewhere)
    save_checkpoint(path, build(checkpoint), TRAINING)
    default = default_checkpoint("small", elsewhere)
    default.parent.mkdir(parents=True)
    checkpoint.rename(default)
    assert load_checkpoint(path)[0].config["sam_checkpoint"] == str(default)
    register_small_sam(monkeypatch, default.parent, seed=5)
    with pytest.raises(InputError, match=r"small\.pth: not the SAM checkpoint that the model was trained on"):
        load_checkpoint(path)
    default.unlink()
    with pytest.raises(InputError, match=r"small\.pth: no such SAM checkpoint"):
        load_checkpoint(path)


def test_a_sam_of_other_preprocessing_is_refused(monkeypatch, tmp_path):
    other = register_small_sam(monkeypatch, tmp_path, preprocessing="squash")
    with pytest.raises(InputError, match="SAM type small"):
        build(other)


def test_stored_features_are_those_of_the_images(checkpoint, phantom_data_dir, tmp_path, monkeypatch):
    data = open_dataset("phantom", phantom_data_dir, SIZE)
    labeled = LabeledDataset(data, data.stems("train", 3))
    model = build(checkpoint)
    StoredFeatures(model, labeled, tmp_path, CPU)
    monkeypatch.setattr(stored_features, "save_embedding", None)  # the next ones compute nothing
    stored = StoredFeatures(model, labeled, tmp_path, CPU)
    features, masks = zip(*(stored[index] for index in range(len(stored))), strict=True)
    images = torch.stack([image for image, _ in labeled])
    with torch.inference_mode():
        assert torch.equal(torch.stack(features), model.encode(images))
        assert torch.equal(model.head(torch.stack(features)), model(images))
    assert features[0].shape == (32, 8, 6)
    assert all(torch.equal(mask, ground_truth) for mask, (_, ground_truth) in zip(masks, labeled, strict=True))
    monkeypatch.undo()
    labeled._images[1] = labeled._images[1].flip(-1)  # another image of the same name
    features = StoredFeatures(model, labeled, tmp_path, CPU)[1][0]
    with torch.inference_mode():
        assert torch.equal(features, model.encode(labeled[1][0][None])[0])
    other = build(register_small_sam(monkeypatch, tmp_path, "small", seed=5))
    with pytest.raises(InputError, match="was computed with the checkpoint"):
        StoredFeatures(other, labeled, tmp_path, CPU)


@pytest.fixture
def stage(phantom_data_dir, tmp_path, monkeypatch):
    """Runs a stage's main on a data folder of its own."""
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    shutil.copytree(phantom_data_dir, tmp_path / "data")

    def run(module, *arguments):
        arguments = ["--dataset", "phantom", "--data_dir", str(tmp_path / "data"), *arguments]
        return module.main(module.get_args_parser().parse_args(arguments))

    return run


N = ("--num_train_samples", "3")
SMALL = (*N, "--epochs", "1", "--data_sample_per_epoch", "4", "--batch_size", "4", "--input_size", "50", "38",
         "--base_width", "2", "--n_last_channel", "2")


@pytest.mark.slow
def test_the_stages_take_it_with_and_without_stored_features(stage, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SAM_TYPES, "small", dataclasses.replace(SAM_TYPES["small"], notice="made by a test"))
    shown = []
    monkeypatch.setattr(Experiment, "image", lambda self, title, series, image, step: shown.append(image.shape))
    arguments = (*SMALL, "--architecture", "lraspp_on_sam", "--sam_type", "small", "--sam_checkpoint", str(checkpoint))
    augmented = stage(training, *arguments)
    data = open_dataset("phantom", tmp_path / "data", SIZE)
    stored = tmp_path / "data" / "phantom" / "sam_embeddings" / "small_lraspp_released_50x38"
    assert not stored.exists()
    model_id = stage(training, *arguments, "--data_aug", "0")
    assert capsys.readouterr().out.splitlines()[-2:] == ["lraspp_on_sam: made by a test", f"model id: {model_id}"]
    assert {path.stem for path in stored.iterdir()} == {*data.stems("train", 3), *data.stems("val")}
    assert shown == 4 * [(*SIZE, 3)]  # prediction and ground truth of both trainings
    models = [load_checkpoint(fetch_model(each).weights)[0].state_dict() for each in (augmented, model_id)]
    assert not torch.equal(*(each["head.blocks.0.convs.0.weight"] for each in models))
    model, _ = load_checkpoint(fetch_model(model_id).weights)
    masks = MaskStore(stage(save_segmentations, *N, "--model_id", model_id), data.description.labels)
    assert len(masks.stems) == 12
    for stem, probabilities in predict(model, ImageDataset(data, masks.stems[:2]), CPU, 1):
        np.testing.assert_array_equal(masks.mask(stem), probabilities > 0.5)
    assert stage(evaluate, "--model_id", model_id, "--results_dir", str(tmp_path / "results")).count == 10
    assert "lraspp_on_sam: made by a test" in capsys.readouterr().out.splitlines()
    for module, more in ((training_on_pseudo_labels, ("--pseudo_label", "raw")), (training_with_mean_teacher, ())):
        final = stage(module, *N, "--model_id", model_id, "--epochs", "1", "--batch_size", "4", *more)
        assert isinstance(load_checkpoint(fetch_model(final).weights)[0], LrasppOnSam)


@pytest.mark.slow
def test_a_model_that_is_not_named_is_a_u_net_whatever_sam_there_is(stage, checkpoint, tmp_path, monkeypatch):
    data, arguments = open_dataset("phantom", tmp_path / "data"), (*SMALL, "--data_aug", "0")
    u_net = stage(training, *arguments)
    other = stage(training, *arguments, "--architecture", "lraspp_on_sam", "--sam_type", "small", "--sam_checkpoint",
                  str(checkpoint))
    monkeypatch.setattr(training, "train", train_if_missing)
    assert stage(training, *arguments) == u_net
    for architecture, model_id in (("u_net", u_net), ("lraspp_on_sam", other)):
        chosen = choose_record(data, ModelOptions(num_train_samples=3), architecture=architecture)
        assert chosen.id == model_id
    assert not {"sam_type", "sam_checkpoint"} & fetch_model(u_net).parameters.keys()
    assert fetch_model(other).parameters["stage"] == "initial"
