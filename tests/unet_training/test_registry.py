"""The registry of architectures."""
import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segment_anything.checkpoints import CheckpointId
from segment_anything.options import EncoderOptions
from unet_training.networks import registry
from unet_training.networks.lraspp import LrasppOptions
from unet_training.networks.network import Network
from unet_training.networks.registry import Architecture
from unet_training.networks.u_net import UNet, UNetOptions
from utils.datasets.description import load_description
from utils.errors import InputError
from utils.options import add_options, option

CHECKPOINT = Path("weights/b.pth")


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """The architecture that arguments name, for GRAZ's data set without its files."""
    monkeypatch.setattr("segment_anything.options.check_present", lambda *_: None)
    monkeypatch.setattr("segment_anything.options.identify", lambda path: CheckpointId(path.name, "0" * 64))
    data = SimpleNamespace(description=load_description("graz"), data_dir=tmp_path)

    def parse(*arguments: str) -> Architecture:
        parser = argparse.ArgumentParser()
        registry.add_architecture_arguments(parser)
        add_options(parser, EncoderOptions)
        return Architecture.from_args(parser.parse_args(arguments), data)
    return parse


@pytest.mark.parametrize("name", ["u_net", "unet"])
def test_a_network_is_built_from_options_and_rebuilt_from_its_config(name):
    model = Architecture(name, UNetOptions(base_width=4, n_last_channel=6)).build(load_description("jsrt"))
    assert isinstance(model, UNet) and model.config == {"n_classes": 5, "base_width": 4, "n_last_channel": 6}
    same = registry.rebuild(name, model.config)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, same)]
    assert shapes[0] == shapes[1]
    with pytest.raises(InputError, match="architecture v_net: no such network; choose one of u_net, lraspp_on_sam"):
        registry.rebuild("v_net", model.config)


def test_the_command_line_gives_the_options_of_the_architecture(choose):
    sam = ("--sam_type", "vit_b", "--sam_checkpoint", str(CHECKPOINT))
    assert choose() == Architecture("u_net", UNetOptions(64, 64))
    widths = ("--base_width", "8", "--n_last_channel", "16")
    assert choose("--architecture", "unet", *widths, *sam) == Architecture("u_net", UNetOptions(8, 16))
    assert choose("--architecture", "lraspp_on_sam", *widths, *sam) == Architecture(
        "lraspp_on_sam", LrasppOptions(16, "released", "vit_b", CHECKPOINT))
    with pytest.raises(SystemExit):
        choose("--architecture", "v_net")


def test_a_network_is_told_from_others_by_its_own_options():
    assert Architecture("u_net", UNetOptions(8, 16)).parameters == {
        "architecture": "u_net", "base_width": 8, "n_last_channel": 16}
    options = LrasppOptions(32, "normalized", "vit_b", CHECKPOINT)
    assert Architecture("lraspp_on_sam", options).parameters == {
        "architecture": "lraspp_on_sam", "n_last_channel": 32, "sam_pixels": "normalized", "sam_type": "vit_b",
        "sam_checkpoint": "b.pth"}


def test_one_more_architecture_is_a_class_and_its_line(monkeypatch, choose):
    @dataclasses.dataclass(frozen=True)
    class LinearOptions:
        kernel: int = option(1, "its side in pixels", type=int)

    class Linear(Network):
        architecture = "linear"
        options = LinearOptions

        def __init__(self, n_classes, kernel):
            super().__init__()
            self.config = {"n_classes": n_classes, "kernel": kernel}
            self.conv = torch.nn.Conv2d(1, n_classes, kernel, padding="same")

        @classmethod
        def build(cls, n_classes, input_size, mean, std, options):
            return cls(n_classes, options.kernel)

        def forward(self, x):
            return self.conv(x)

    monkeypatch.setitem(registry.ARCHITECTURES, "linear", Linear)
    architecture = choose("--architecture", "linear", "--kernel", "3")
    assert architecture.parameters == {"architecture": "linear", "kernel": 3}
    model = architecture.build(load_description("jsrt"))
    assert registry.rebuild("linear", model.config)(torch.zeros(1, 1, 50, 38)).shape == (1, 5, 50, 38)
    assert (model.notice, model.features_name) == ("", "")
