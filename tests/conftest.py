"""What several test modules share: the folder of real data, one thread per core."""
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"the real data in {SHARED.name}/ beside the project are not here"))


@pytest.fixture
def shared() -> Path:
    """The folder of real weights and data; tests that use it carry the marker `shared`."""
    return SHARED
