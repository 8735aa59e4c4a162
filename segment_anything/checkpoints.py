"""Reading SAM checkpoints safely, and telling them apart."""
import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch

from utils.errors import InputError


@dataclass(frozen=True)
class CheckpointId:
    """What identifies a checkpoint: its file name and the SHA-256 of its bytes (hexadecimal)."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]}...)"


def identify(path: Path) -> CheckpointId:
    """Reads the whole file (2.5 GB take seconds), but once in a process while its size and time stay the same."""
    file = path.stat()
    return CheckpointId(path.name, _sha256(path.resolve(), file.st_size, file.st_mtime_ns))


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_in_package(package: str, name: str) -> Path | None:
    """Where a file of an installed top-level package lies, none of whose code runs; None if it isn't installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0], name) if spec else None


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a `.safetensors` or PyTorch file on the CPU, without unpickling any object.

    Tensors of a PyTorch file in today's format stay on disk until they are used.

    Raises:
        InputError: the file is no checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that are no checkpoint can fail anywhere in the reader
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); download it again") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise InputError(f"{path}: holds no state dict of tensors; use the checkpoint file as published")
    return state_dict


def check_architecture(path: Path, sam_type: str, actual: Mapping[str, torch.Tensor],
                       expected: Mapping[str, torch.Tensor]) -> None:
    """Compares keys and shapes.

    Raises:
        InputError: they differ; the message counts the differences and gives an example of each kind.
    """
    missing = sorted(expected.keys() - actual.keys())
    unknown = sorted(actual.keys() - expected.keys())
    reshaped = [key for key in sorted(expected.keys() & actual.keys()) if expected[key].shape != actual[key].shape]
    differences = []
    if missing:
        differences.append(f"{len(missing)} tensors are missing, e.g. {missing[0]}")
    if unknown:
        differences.append(f"{len(unknown)} are unknown, e.g. {unknown[0]}")
    if reshaped:
        key = reshaped[0]
        differences.append(f"{len(reshaped)} have another shape, e.g. {key}: {tuple(actual[key].shape)} "
                           f"instead of {tuple(expected[key].shape)}")
    if differences:
        raise InputError(f"{path}: not a checkpoint of SAM type {sam_type} ({'; '.join(differences)}); "
                         "give the --sam_type that it belongs to, or another checkpoint")
