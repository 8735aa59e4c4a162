"""The architectures of networks: one more is a subclass of `Network`, and its name in `ARCHITECTURES`.

    model = build("u_net", n_classes=17, input_size=(384, 224), mean=0.35, std=0.23, options=UNetOptions())
    same = rebuild(model.architecture, model.config)    # with other weights
"""
import argparse
import dataclasses
from typing import Any

from unet_training.networks.lraspp import LrasppOnSam
from unet_training.networks.network import Network
from unet_training.networks.u_net import UNet
from utils.errors import InputError
from utils.options import add_options, options_from, plain_value

ARCHITECTURES: dict[str, type[Network]] = {network.architecture: network for network in (UNet, LrasppOnSam)}
ALIASES = {"unet": UNet.architecture}  # the authors' name


def get_architecture(name: str) -> type[Network]:
    """Raises InputError for a name that is none."""
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        raise InputError(f"architecture {name}: no such network; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build(name: str, n_classes: int, input_size: tuple[int, int], mean: float, std: float, options: Any) -> Network:
    """A new network with random weights, see `Network.build`."""
    return get_architecture(name).build(n_classes, input_size, mean, std, options)


def rebuild(name: str, config: dict[str, Any]) -> Network:
    """The network that has this `config`, with random weights.

    Raises:
        InputError: no such architecture, or what the network stands on isn't there.
        TypeError: the config is of another version of the network.
    """
    return get_architecture(name)(**config)


def parameters(name: str, options: Any) -> dict[str, Any]:
    """What tells one network from others in the tracker: its architecture, and its own options."""
    fields = dataclasses.fields(options)
    return {"architecture": get_architecture(name).architecture,
            **{field.name: plain_value(getattr(options, field.name)) for field in fields}}


def idle_options(name: str) -> set[str]:
    """The options of other architectures, which this one has no use for."""
    return set().union(*map(_option_names, ARCHITECTURES.values())) - _option_names(get_architecture(name))


def _option_names(network: type[Network]) -> set[str]:
    return {field.name for field in dataclasses.fields(network.options)}


def add_architecture_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--architecture` and the options of all architectures."""
    parser.add_argument("--architecture", type=_canonical, choices=tuple(ARCHITECTURES), default=UNet.architecture,
                        help="the network")
    # as one class, which has an option of several of them once
    all_options = dataclasses.make_dataclass("AllOptions", (), frozen=True,
                                             bases=tuple(network.options for network in ARCHITECTURES.values()))
    add_options(parser, all_options)


def _canonical(name: str) -> str:
    """An argparse type for names of architectures."""
    return ALIASES.get(name, name)


def options_from_args(name: str, args: argparse.Namespace, **more: Any) -> Any:
    """That architecture's options as the arguments say; of `more`, those that it has."""
    network = get_architecture(name)
    names = _option_names(network) & more.keys()
    return options_from(network.options, args, **{option: more[option] for option in names})
