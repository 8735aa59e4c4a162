"""What several test modules share: the folder of real data, one thread per core."""
import os
from pathlib import Path

import pytest

from scripts import make_phantoms

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """No test reaches a tracking server of the user's; decided once per process, before the first test."""
    os.environ["CLEARML_OFFLINE_MODE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"the real data in {SHARED.name}/ beside the project are not here"))


@pytest.fixture(scope="session")
def phantom_data_dir(tmp_path_factory) -> Path:
    """A data folder with the sample data's labelled images and 12 unlabelled ones, drawn once; leave it as it is."""
    folder = tmp_path_factory.mktemp("data")
    parser = make_phantoms.get_args_parser()
    make_phantoms.main(parser.parse_args(["--data_dir", str(folder), "--num_unlabelled", "12"]))
    return folder


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory, monkeypatch) -> None:
    """Sessions and models of a test stay out of the project, where its module doesn't choose another folder."""
    if "SAM_BURDEN_RUNS" not in os.environ:
        monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def shared() -> Path:
    """The folder of real weights and data; tests that use it carry the marker `shared`."""
    return SHARED
