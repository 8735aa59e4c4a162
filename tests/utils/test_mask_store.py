import fcntl
import json
import pickle

import h5py
import numpy as np
import pytest

from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter

LABELS = ("radius", "ulna")
ATTRIBUTES = {"clearml_model_id": "offline-1"}


def random_mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((2, 7, 11)) < 0.5


def write(path, stems, labels=LABELS, attributes=ATTRIBUTES):
    writer = MaskWriter(path, labels, attributes)
    missing = writer.missing(stems)
    with writer:
        for stem in missing:
            writer.write(stem, random_mask(int(stem)), np.array([0.5, np.nan]))
    return missing


def test_round_trip_with_layout_of_the_paper(tmp_path):
    path = tmp_path / "raw.h5"
    write(path, ["1", "2"])
    with h5py.File(path) as file:
        assert file["segmentation_mask/1"].dtype == bool
        assert json.loads(file.attrs["labels"]) == {"radius": 0, "ulna": 1}
        assert file.attrs["clearml_model_id"] == "offline-1"
    store = MaskStore(path, LABELS)
    assert store.stems == ["1", "2"] and "1" in store and "3" not in store
    np.testing.assert_array_equal(store.mask("2"), random_mask(2))
    np.testing.assert_array_equal(store.estimated_dice("2"), [0.5, np.nan])


def test_reader_travels_to_worker_processes_with_its_file_open(tmp_path):
    path = tmp_path / "raw.h5"
    write(path, ["1"])
    store = MaskStore(path, LABELS)
    store.mask("1")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.mask("1"), random_mask(1))


@pytest.mark.parametrize("begun", [True, False])
def test_a_second_run_leaves_the_firsts_file_alone(tmp_path, begun):
    """The first holds HDF5's lock, either already when the second one looks, or from then on."""
    path, part = tmp_path / "raw.h5", tmp_path / "raw.h5.part"
    second = None if begun else MaskWriter(path, LABELS, ATTRIBUTES)
    with h5py.File(part, "w") as file:
        file.create_group("segmentation_mask")
    with part.open() as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"raw\.h5\.part: another run is writing this file"):
            (second or MaskWriter(path, LABELS, ATTRIBUTES)).__enter__()
    assert part.exists() and not path.exists()


def test_interrupted_run_leaves_no_result_and_goes_on(tmp_path):
    path = tmp_path / "raw.h5"
    writer = MaskWriter(path, LABELS, ATTRIBUTES)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write("1", random_mask(1))
        raise KeyboardInterrupt
    assert not path.exists()
    assert write(path, ["1", "2"]) == ["2"]
    assert MaskStore(path, LABELS).stems == ["1", "2"]
    assert [file.name for file in tmp_path.iterdir()] == ["raw.h5"]


def test_run_that_fails_at_once_leaves_nothing_behind(tmp_path):
    path = tmp_path / "raw.h5"
    with pytest.raises(InputError), MaskWriter(path, LABELS, {"clearml_model_id": "a mistake"}):
        raise InputError("the checkpoint is broken")
    assert list(tmp_path.iterdir()) == []


def test_finished_file_stays_valid_while_it_is_extended(tmp_path):
    path = tmp_path / "raw.h5"
    write(path, ["1"])
    with MaskWriter(path, LABELS, ATTRIBUTES) as writer:
        writer.write("2", random_mask(2))
        assert MaskStore(path, LABELS).stems == ["1"]
    assert MaskStore(path, LABELS).stems == ["1", "2"]


def test_damaged_unfinished_file_is_started_anew(tmp_path):
    path = tmp_path / "raw.h5"
    write(path, ["1", "2"])
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "raw.h5.part").write_bytes(content[:len(content) // 2])
    assert write(path, ["1", "2"]) == ["1", "2"]


@pytest.mark.parametrize(("labels", "attributes", "message"), [
    (("ulna", "radius"), ATTRIBUTES, "labels"),
    (LABELS, {"clearml_model_id": "offline-2"}, "clearml_model_id"),
])
def test_other_labels_or_origin_are_refused(tmp_path, labels, attributes, message):
    path = tmp_path / "raw.h5"
    write(path, ["1"])
    with pytest.raises(InputError, match=message):
        MaskWriter(path, labels, attributes)


def test_reader_refuses_what_is_not_its_own(tmp_path):
    path = tmp_path / "raw.h5"
    with pytest.raises(InputError, match="save_segmentations"):
        MaskStore(path, LABELS)
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="not a readable HDF5"):
        MaskStore(path, LABELS)
    path.unlink()
    write(path, ["1"])
    with pytest.raises(InputError, match="labels"):
        MaskStore(path, ("humerus", "ulna"))
    with pytest.raises(InputError, match="no mask of 9"):
        MaskStore(path, LABELS).mask("9")
