"""Where the images and masks of a report lie by now."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unet_training.models import DataOptions
from utils.datasets.annotated import AnnotatedImages

FOLDERS = ("data_dir", "derived_dir")


@dataclass(frozen=True)
class Places:
    """Folders of data that has moved (None: where it was), and what computes."""

    device: torch.device
    data_dir: Path | None = None
    derived_dir: Path | None = None

    def recorded(self) -> dict[str, str]:
        """As a record keeps the folders, and `moved` takes them."""
        return {name: str(path.resolve()) for name in FOLDERS if (path := getattr(self, name))}

    def moved(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a run with these folders."""
        given = self.recorded()
        return {**arguments, **({"derived_dir": None} if "data_dir" in given else {}), **given}

    def open(self, arguments: Mapping[str, Any]) -> AnnotatedImages:
        """The data set of a run's arguments. Raises InputError as `open_dataset`."""
        arguments = self.moved(arguments)
        derived = arguments["derived_dir"]
        return DataOptions(arguments["dataset"], Path(arguments["data_dir"]), Path(derived) if derived else None).open()
