"""The file of a network: ours, and those of the authors' code against their forward pass by hand."""
from dataclasses import replace

import pytest
import torch
from msgspec.structs import replace as struct_replace
from torch.nn import functional as F

from unet_training.checkpoint import Training, load_checkpoint, save_checkpoint
from unet_training.networks.u_net import UNet
from utils.datasets.description import load_description
from utils.errors import InputError

SIZE = (50, 38)
TRAINING = Training("phantom", ("radius", "ulna", "lunate"), SIZE, 0.4, 0.2)


def test_model_rebuilds_itself_from_its_file(tmp_path):
    model = UNet(3, base_width=4, n_last_channel=6).eval()
    save_checkpoint(tmp_path / "model.pt", model, TRAINING)
    loaded, training = load_checkpoint(tmp_path / "model.pt")
    assert training == TRAINING
    x = torch.randn(1, 1, 50, 38)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="holds no network"):
        load_checkpoint(path)
    save_checkpoint(path, UNet(3, base_width=4), TRAINING)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["base_width"] = 8
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="don't fit"):
        load_checkpoint(path)


def test_data_must_be_those_that_a_model_was_trained_on_unless_it_is_transferred():
    phantom, jsrt = (load_description(name) for name in ("phantom", "jsrt"))
    training = Training.on(phantom)
    assert training.reading == "float32"
    training.check_data(phantom, transfer=False)
    for other, message in ((jsrt, "the labels"), (struct_replace(phantom, name="graz"), "trained on data set phantom"),
                           (struct_replace(phantom, max_grey_value=4095), "read as 'float32', by now they are as"),
                           (struct_replace(phantom, resize_dtype="stored"), "by now they are as 'stored'")):
        with pytest.raises(InputError, match=message):
            training.check_data(other, transfer=False)
        if other is not jsrt:
            training.check_data(other, transfer=True)
    with pytest.raises(InputError, match="the labels"):
        training.check_data(jsrt, transfer=True)
    replace(training, reading=None).check_data(struct_replace(phantom, invert=True), transfer=False)  # an older file


def authors_weights(width, n_last_channel, n_classes):
    """Names and shapes as a U-Net of the authors' code has them, with random values."""
    shapes = {}

    def double_conv(name, channels_in, channels_out):
        for conv, norm, channels in (("0", "1", channels_in), ("3", "4", channels_out)):
            shapes[f"{name}.double_conv.{conv}.weight"] = channels_out, channels, 3, 3
            shapes[f"{name}.double_conv.{norm}.weight"] = shapes[f"{name}.double_conv.{norm}.bias"] = (channels_out,)

    double_conv("inc", 1, width)
    for level in range(4):
        double_conv(f"down{level + 1}.maxpool_conv.1", width * 2 ** level, width * 2 ** (level + 1))
    for step, channels in enumerate((16 * width, 8 * width, 4 * width, 2 * width), start=1):
        shapes[f"up{step}.up.weight"], shapes[f"up{step}.up.bias"] = (channels, channels // 2, 2, 2), (channels // 2,)
        double_conv(f"up{step}.conv", channels, channels // 2 if step < 4 else n_last_channel)
    shapes["outc.conv.weight"], shapes["outc.conv.bias"] = (n_classes, n_last_channel, 1, 1), (n_classes,)
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def authors_forward(x, weights):
    def double_conv(name, x):
        for conv, norm in (("0", "1"), ("3", "4")):
            x = F.conv2d(x, weights[f"{name}.double_conv.{conv}.weight"], padding=1)
            x = F.instance_norm(x, weight=weights[f"{name}.double_conv.{norm}.weight"],
                                bias=weights[f"{name}.double_conv.{norm}.bias"])
            x = F.leaky_relu(x, 0.01)
        return x

    levels = [double_conv("inc", x)]
    for level in range(1, 5):
        levels.append(double_conv(f"down{level}.maxpool_conv.1", F.max_pool2d(levels[-1], 2)))
    x = levels.pop()
    for step in range(1, 5):
        skip = levels.pop()
        x = F.conv_transpose2d(x, weights[f"up{step}.up.weight"], weights[f"up{step}.up.bias"], stride=2)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = double_conv(f"up{step}.conv", torch.cat([skip, x], dim=1))
    return F.conv2d(x, weights["outc.conv.weight"], weights["outc.conv.bias"])


def save_authors(path, weights, **config):
    config = {"n_channels": 1, "n_classes": 3, "bilinear": False, "n_last_channel": 6, **config}
    torch.save({"config": config, "model_state": weights}, path)


@torch.inference_mode()
def test_a_u_net_of_the_authors_code_gives_the_same(tmp_path):
    weights, images = authors_weights(4, 6, 3), torch.randn(2, 1, *SIZE)
    save_authors(tmp_path / "theirs.pth", weights)
    model, training = load_checkpoint(tmp_path / "theirs.pth", unstated=TRAINING)
    assert training == TRAINING and not model.training
    expected = authors_forward(images, weights)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    save_checkpoint(tmp_path / "ours.pt", model, training)
    assert torch.equal(load_checkpoint(tmp_path / "ours.pt")[0](images), model(images))


def test_a_file_of_the_authors_code_is_loaded_only_with_what_it_leaves_out(tmp_path):
    path, weights = tmp_path / "theirs.pth", authors_weights(2, 6, 3)
    save_authors(path, weights)
    with pytest.raises(InputError, match=r"theirs\.pth: .* doesn't say what it was trained on"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="a model of 3 classes, but data set jsrt has 1 labels"):
        load_checkpoint(path, unstated=Training("jsrt", ("heart",), SIZE, 0.0, 1.0))
    batch_norm = {**weights, "inc.double_conv.1.running_mean": torch.zeros(2)}
    colors = {**weights, "inc.double_conv.0.weight": torch.zeros(2, 3, 3, 3)}
    for wrong, config, message in ((weights, {"bilinear": True}, "not their U-Net"), (colors, {}, "not their U-Net"),
                                   ({"res_encoder.0.weight": torch.zeros(1)}, {}, "not their U-Net"),
                                   (batch_norm, {}, "don't fit")):
        save_authors(path, wrong, **config)
        with pytest.raises(InputError, match=message):
            load_checkpoint(path, unstated=TRAINING)


def test_our_own_files_say_what_they_were_trained_on(tmp_path):
    save_checkpoint(tmp_path / "model.pt", UNet(3, 2, 2), TRAINING)
    other = Training("jsrt", ("heart",), (8, 8), 0.0, 1.0)
    assert load_checkpoint(tmp_path / "model.pt", unstated=other)[1] == TRAINING


@pytest.mark.parametrize(("value", "training"), [(float("nan"), TRAINING), (1.0, replace(TRAINING, mean=float("nan")))])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value, training):
    model = UNet(3, 2, 2)
    with torch.no_grad():
        model.out.bias[1] = value
    save_checkpoint(tmp_path / "model.pt", model, training)
    with pytest.raises(InputError, match=r"model\.pt: holds a number that isn't finite"):
        load_checkpoint(tmp_path / "model.pt")
