"""The registry of architectures."""
import argparse
import dataclasses
from pathlib import Path

import pytest
import torch

from unet_training.networks import registry
from unet_training.networks.lraspp import LrasppOptions
from unet_training.networks.network import Network
from unet_training.networks.u_net import UNet, UNetOptions
from utils.errors import InputError
from utils.options import option


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    registry.add_architecture_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("name", ["u_net", "unet"])
def test_a_network_is_built_from_options_and_rebuilt_from_its_config(name):
    model = registry.build(name, 3, (50, 38), 0.4, 0.2, UNetOptions(base_width=4, n_last_channel=6))
    assert isinstance(model, UNet) and model.config == {"n_classes": 3, "base_width": 4, "n_last_channel": 6}
    same = registry.rebuild(name, model.config)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, same)]
    assert shapes[0] == shapes[1]
    with pytest.raises(InputError, match="architecture v_net: no such network; choose one of u_net, lraspp_on_sam"):
        registry.rebuild("v_net", model.config)


def test_the_command_line_gives_the_options_of_the_architecture():
    args = parse("--architecture", "unet", "--base_width", "8", "--n_last_channel", "16")
    sam = {"sam_type": "vit_b", "sam_checkpoint": Path("/weights/b.pth")}
    assert args.architecture == "u_net"
    assert registry.options_from_args("u_net", args, **sam) == UNetOptions(8, 16)
    expected = LrasppOptions(16, "released", "vit_b", Path("/weights/b.pth"))
    assert registry.options_from_args("lraspp_on_sam", args, **sam) == expected
    args = parse()
    assert args.architecture == "u_net" and registry.options_from_args("u_net", args) == UNetOptions(64, 64)
    with pytest.raises(SystemExit):
        parse("--architecture", "v_net")


def test_a_network_is_told_from_others_by_its_own_options():
    assert registry.parameters("unet", UNetOptions(8, 16)) == {"architecture": "u_net", "base_width": 8,
                                                               "n_last_channel": 16}
    assert registry.idle_options("unet") == {"sam_type", "sam_checkpoint", "sam_pixels"}
    options = LrasppOptions(32, "normalized", "vit_b", Path("/weights/b.pth"))
    assert registry.parameters("lraspp_on_sam", options) == {
        "architecture": "lraspp_on_sam", "n_last_channel": 32, "sam_pixels": "normalized", "sam_type": "vit_b",
        "sam_checkpoint": "/weights/b.pth"}
    assert registry.idle_options("lraspp_on_sam") == {"base_width"}


def test_one_more_architecture_is_a_class_and_its_line(monkeypatch):
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
    args = parse("--architecture", "linear", "--kernel", "3")
    options = registry.options_from_args(args.architecture, args)
    model = registry.build(args.architecture, 2, (50, 38), 0.4, 0.2, options)
    assert registry.rebuild("linear", model.config)(torch.zeros(1, 1, 50, 38)).shape == (1, 2, 50, 38)
    assert "kernel" in registry.idle_options("u_net")
    assert (model.notice, model.features_name) == ("", "")
