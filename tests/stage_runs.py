"""Running stages in a test's own process, at a small size."""
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unet_training import training

N = ["--num_train_samples", "3"]
SMALL = ["--epochs", "2", "--base_width", "4", "--n_last_channel", "4", "--input_size", "96", "64",
         "--data_sample_per_epoch", "8", "--batch_size", "4"]


def run(stage, data_dir, *arguments):
    """Runs a stage's main in this process and returns what it returns."""
    args = ["--dataset", "phantom", "--data_dir", str(data_dir), *arguments]
    return stage.main(stage.get_args_parser().parse_args(args))


@contextmanager
def new_workplace(phantom_data_dir: Path, folder: Path, *arguments: str) -> Iterator[tuple[Path, str]]:
    """A data folder that may be written to, an initial model trained there, and runs of its own: yields the data folder
    and the model's id."""
    data_dir = shutil.copytree(phantom_data_dir, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(folder / "runs"))
        yield data_dir, run(training, data_dir, *N, *arguments)
