"""The architectures of networks: one more is a subclass of `Network`, and its name in `ARCHITECTURES`.

    model = Architecture("u_net", UNetOptions()).build(load_description("graz"))
    same = rebuild(model.architecture, model.config)    # with other weights
"""
import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unet_training.networks.ensemble import Ensemble
from unet_training.networks.lraspp import LrasppOnSam
from unet_training.networks.network import Network
from unet_training.networks.u_net import UNet
from utils.datasets.annotated import AnnotatedImages
from utils.datasets.description import DatasetDescription
from utils.digests import digest_file
from utils.errors import InputError
from utils.options import add_options

ARCHITECTURES: dict[str, type[Network]] = {network.architecture: network for network in (UNet, LrasppOnSam)}
STORED = (*ARCHITECTURES, Ensemble.architecture)  # in files of networks; an ensemble is never built anew
ALIASES = {"unet": UNet.architecture}  # the authors' name


def get_architecture(name: str) -> type[Network]:
    """Raises InputError for a name that is none."""
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        raise InputError(f"architecture {name}: no such network; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def rebuild(name: str, config: dict[str, Any]) -> Network:
    """The network that has this `config`, with random weights.

    Raises:
        InputError: no such architecture, or what the network stands on isn't there.
        TypeError: the config is of another version of the network.
    """
    if name == Ensemble.architecture:
        return Ensemble([rebuild(config["member"], config["member_config"]) for _ in range(config["count"])])
    return get_architecture(name)(**config)


def add_architecture_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds `--architecture` and the options of all architectures; those that several have, once."""
    parser.add_argument("--architecture", type=canonical_name, choices=tuple(ARCHITECTURES), default=UNet.architecture,
                        help="the network")
    for network in ARCHITECTURES.values():
        add_options(parser, network.options)


def canonical_name(name: str) -> str:
    """An argparse type for names of architectures."""
    return ALIASES.get(name, name)


@dataclass(frozen=True)
class Architecture:
    """A network that is to be built: a key of `ARCHITECTURES`, and the options of that one."""

    name: str
    options: Any

    @classmethod
    def from_args(cls, args: argparse.Namespace, data: AnnotatedImages, name: str | None = None) -> "Architecture":
        """Of the arguments of `add_architecture_arguments`, and SAM's where it needs them; `name` takes the place of
        `--architecture`."""
        name = name or args.architecture
        return cls(name, get_architecture(name).options_from_args(args, data))

    @property
    def parameters(self) -> dict[str, Any]:
        """What tells one network from others in the tracker: its architecture, and its own options, files by name and
        digest."""
        values = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        files = {name: value for name, value in values.items() if isinstance(value, Path)}
        digests = {f"{name}_sha256": digest_file(path) for name, path in files.items() if path.is_file()}
        return {"architecture": self.name, **values, **{name: path.name for name, path in files.items()}, **digests}

    def build(self, description: DatasetDescription) -> Network:
        """The network for a data set, with random weights; errors as of `Network.build`."""
        return get_architecture(self.name).build(len(description.labels), description.input_size, description.mean,
                                                 description.std, self.options)
