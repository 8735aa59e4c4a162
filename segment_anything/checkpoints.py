"""Reading SAM checkpoints safely, and telling them apart."""
import importlib.util
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from utils.digests import digest_file
from utils.errors import InputError, say_once
from utils.files import check_zip, explain_damage

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "sam", "net", "network", "module", "weights")
PART = "mask_decoder."  # of every type of SAM
NUMPY_SCALARS = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]


@dataclass(frozen=True)
class CheckpointId:
    """What identifies a checkpoint: its file name and the SHA-256 of its bytes (hexadecimal)."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]}...)"


def identify(path: Path) -> CheckpointId:
    """Reads the whole file (2.5 GB take seconds), but once in a process while it stays as it is."""
    return CheckpointId(path.name, digest_file(path))


def find_in_package(package: str, name: str) -> Path | None:
    """Where a file of an installed top-level package lies, none of whose code runs; None if it isn't installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0], name) if spec else None


def read_state_dict(path: Path, known: bool = True) -> dict[str, torch.Tensor]:
    """Reads the tensors of a `.safetensors` or PyTorch file on the CPU, without unpickling any object but NumPy's
    scalars. What a training wrapped them in is taken off (`unwrap`).

    Tensors of a PyTorch file in today's format stay on disk until they are used.

    Args:
        known: whether the file's digest is; else its own checksums, which PyTorch ignores, are checked
    Raises:
        InputError: the file is no checkpoint, or a damaged one.
        OSError: it can't be accessed.
    """
    with explain_damage(path, "not a readable checkpoint", "get the file again, or save its state dict alone"):
        if path.suffix == ".safetensors":
            return unwrap(path, safetensors.torch.load_file(path))
        zipped = zipfile.is_zipfile(path)
        if zipped and not known:
            check_zip(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return unwrap(path, torch.load(path, map_location="cpu", weights_only=True, mmap=zipped))


def unwrap(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The state dict of a SAM as it is published, of what a fine-tuning saved: out of the dict that holds it beside an
    optimizer, without the prefix that wrappers such as DataParallel or Lightning give all names, and without what is no
    part of SAM. Says what was taken off.

    Raises:
        InputError: there are no weights of a SAM in it.
    """
    taken, inner = [], content
    while isinstance(inner, dict) and not any(isinstance(value, torch.Tensor) for value in inner.values()):
        key = next((key for key in WRAPPERS if isinstance(inner.get(key), dict)), None)
        if key is None:
            break
        taken.append(repr(key))
        inner = inner[key]
    tensors = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)} \
        if isinstance(inner, dict) else {}
    if not tensors:
        raise InputError(f"{path}: holds no state dict of tensors; use the checkpoint file as published, or save "
                         "model.state_dict() alone")
    prefixes = {name.partition(PART)[0] for name in tensors if PART in name}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if prefix:
        taken.append(f"the prefix {prefix!r}")
    if others := len(inner) - len(weights):
        taken.append(f"{others} entries that are no part of it")
    if taken:
        say_once(f"{path}: SAM's weights are taken out of {', '.join(taken)}")
    return weights


def check_finite(path: Path, tensors: Iterable[torch.Tensor]) -> None:
    """Raises an InputError where a weight isn't a finite number."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise InputError(f"{path}: holds a weight that isn't finite; use a checkpoint of before it diverged")


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
