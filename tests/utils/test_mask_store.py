import errno
import fcntl
import json
import pickle

import h5py
import numpy as np
import pytest

from tests.fresh_process import printed, run_code
from utils import hdf5
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter

LABELS = ("radius", "ulna")
FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from utils.mask_store import MaskWriter
path = Path(sys.argv[1])
sizes = {"1": 10, "2": 20, "3": 400}
masks = {stem: np.random.default_rng(0).random((2, size, size)) < 0.5 for stem, size in sizes.items()}
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, limit[1]))
try:
    with MaskWriter(path, ("radius", "ulna"), {}) as writer:
        for stem, mask in masks.items():
            writer.write(stem, mask)
except OSError as error:
    print("error:", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
writer = MaskWriter(path, ("radius", "ulna"), {})
print("missing:", missing := writer.missing(list(masks)))
with writer:
    for stem in missing:
        writer.write(stem, masks[stem])
"""
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


def test_damaged_masks_of_an_interrupted_run_are_made_anew_and_the_others_kept(tmp_path):
    path = tmp_path / "raw.h5"
    interrupt(path, ["1", "2", "3"])
    parts = sorted(next(tmp_path.iterdir()).iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-100])
    parts[1].write_bytes(b"")
    (parts[0].parent / ".killed.part.h5").write_bytes(b"half")
    assert len(write(path, ["1", "2", "3"])) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["raw.h5"]
    store = MaskStore(path, LABELS)
    for stem in store.stems:
        np.testing.assert_array_equal(store.mask(stem), random_mask(int(stem)))


def interrupt(path, stems, attributes=ATTRIBUTES):
    with pytest.raises(KeyboardInterrupt), MaskWriter(path, LABELS, attributes) as writer:
        for stem in stems:
            writer.write(stem, random_mask(int(stem)), np.array([0.5, np.nan]))
        raise KeyboardInterrupt


def test_interruptions_leave_no_trace_in_the_bytes(tmp_path):
    write(tmp_path / "whole.h5", ["2", "1", "3"])
    interrupt(tmp_path / "resumed.h5", ["2"])
    write(tmp_path / "resumed.h5", ["2", "1", "3"])
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "resumed.h5").read_bytes()


def test_unfinished_masks_of_other_attributes_are_not_mixed_in(tmp_path):
    path = tmp_path / "raw.h5"
    interrupt(path, ["1"], {"clearml_model_id": "offline-2"})
    assert write(path, ["1", "2"]) == ["1", "2"]
    assert [file.name for file in tmp_path.iterdir()] == ["raw.h5"]


def test_a_mask_of_another_image_is_missing_and_replaced(tmp_path):
    path, old, new = tmp_path / "raw.h5", {"1": "a", "2": "b"}, {"1": "a", "2": "c"}
    with MaskWriter(path, LABELS, ATTRIBUTES) as writer:
        writer.write_all([("1", random_mask(1)), ("2", random_mask(2))], old)
    assert MaskStore(path, LABELS).images == old
    writer = MaskWriter(path, LABELS, ATTRIBUTES)
    assert writer.missing(["1", "2"], old) == [] and writer.missing(["1", "2"], new) == ["2"]
    with writer:
        writer.write_all([("2", random_mask(3))], new)
    store = MaskStore(path, LABELS)
    assert store.images == new
    np.testing.assert_array_equal(store.mask("1"), random_mask(1))
    np.testing.assert_array_equal(store.mask("2"), random_mask(3))


def test_what_is_no_mask_is_refused_and_numbers_are_cast(tmp_path):
    path, wrong = tmp_path / "theirs.h5", [np.full((2, 7, 11), 2), np.full((2, 7, 11), 0.5), np.ones((3, 7, 11), bool),
                                           np.ones((7, 11), bool)]
    with h5py.File(path, "w") as file:
        file.attrs["labels"] = json.dumps({"radius": 0, "ulna": 1})
        file["segmentation_mask/right"] = random_mask(1).astype(np.float32)
        for number, values in enumerate(wrong):
            file[f"segmentation_mask/{number}"] = values
    store = MaskStore(path, LABELS)
    assert store.mask("right").dtype == bool
    np.testing.assert_array_equal(store.mask("right"), random_mask(1))
    for number in range(len(wrong)):
        with pytest.raises(InputError, match=rf"theirs\.h5: the mask of {number} (is of shape|holds other)"):
            store.mask(str(number))


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "raw.h5"
    write(path, ["1", "2"])
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(1024, len(content), 50):
        path.write_bytes(flip(content, position))
        with pytest.raises(InputError, match=r"raw\.h5: damaged"):
            MaskStore(path, LABELS)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1:]


def test_a_file_of_another_program_whose_reading_finds_no_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["segmentation_mask/1"] = random_mask(1)
    monkeypatch.setattr(hdf5, "READ_THROUGH", "while True: pass")
    monkeypatch.setattr(hdf5, "PATIENCE", (0.2, 1e9))
    with pytest.raises(InputError, match="finds no end"):
        MaskStore(path, LABELS)


def test_what_can_not_be_accessed_is_not_called_damaged(tmp_path, monkeypatch):
    """As on a network drive without locks, or with a disk that fails."""
    path = tmp_path / "raw.h5"
    write(path, ["1"])

    def refuse(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(h5py, "File", refuse)
    for read in (MaskStore, lambda *arguments: MaskWriter(*arguments, ATTRIBUTES)):
        with pytest.raises(OSError, match="Input/output error"):
            read(path, LABELS)
    monkeypatch.undo()
    monkeypatch.setattr(fcntl, "flock", lambda *_: refuse())
    assert MaskStore(path, LABELS).mask("1").any()


@pytest.mark.slow
def test_a_full_disk_is_an_error_of_the_system_and_the_next_run_resumes(tmp_path):
    output = run_code(FULL_DISK, str(tmp_path / "raw.h5"), folder=tmp_path, runs=tmp_path / "runs")
    assert printed("error", output) == f"{errno.EFBIG}"
    assert printed("missing", output) == "['3']"
    assert MaskStore(tmp_path / "raw.h5", LABELS).stems == ["1", "2", "3"]


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
    with pytest.raises(InputError, match=r"raw\.h5: damaged .*restore it from a copy"):
        MaskStore(path, LABELS)
    path.unlink()
    write(path, ["1"])
    with pytest.raises(InputError, match="labels"):
        MaskStore(path, ("humerus", "ulna"))
    with pytest.raises(InputError, match="no mask of 9"):
        MaskStore(path, LABELS).mask("9")
