"""Shards of masks become the file that one process writes."""
import h5py
import numpy as np
import pytest

from utils.errors import InputError
from utils.mask_shards import merge_masks, note_begin, note_end
from utils.mask_store import MaskStore, MaskWriter
from utils.ranks import WHOLE, Shard

LABELS = ("radius", "ulna")
ATTRIBUTES = {"clearml_model_id": "offline-1"}
IMAGES = {stem: f"{stem} as it is" for stem in ("a", "b", "c", "d", "e")}


def draw(stem: str, image: str) -> tuple:
    rng = np.random.default_rng([ord(letter) for letter in image])
    return stem, rng.random((2, 7, 11)) < 0.5, rng.random(2)


def make(path, shard=WHOLE, images=IMAGES, attributes=ATTRIBUTES, stop_after=None):
    """Makes what is missing of a shard, as a stage does; returns which images these were."""
    writer = MaskWriter(path, LABELS, attributes, shard)
    missing = writer.missing(shard.share(list(images)), images)
    note_begin(writer)
    with writer:
        writer.write_all([draw(stem, images[stem]) for stem in missing[:stop_after]], images)
        if stop_after is not None:
            raise KeyboardInterrupt
    if shard != WHOLE:
        note_end(writer, list(images))
    return missing


@pytest.mark.parametrize("count", [1, 2, 7])  # more shards than images, too
def test_the_merged_file_is_that_of_one_process_byte_for_byte(tmp_path, count):
    make(tmp_path / "whole.h5")
    for number in reversed(range(count)):
        make(tmp_path / "raw.h5", Shard(number + 1, count))
    merge_masks(tmp_path / "raw.h5")
    assert (tmp_path / "raw.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.h5", "whole.h5"]
    merge_masks(tmp_path / "raw.h5")  # nothing is left to do
    assert (tmp_path / "raw.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_every_image_is_in_one_shard():
    shares = [Shard(number, 3).share(range(10)) for number in (1, 2, 3)]
    assert sorted(index for share in shares for index in share) == list(range(10))
    assert {len(share) for share in shares} == {3, 4}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(InputError, match="such as 1/8 to 8/8"):
        Shard.choose(text)


def test_a_killed_shard_resumes_whatever_the_number_of_shards(tmp_path):
    path = tmp_path / "raw.h5"
    with pytest.raises(KeyboardInterrupt):
        make(path, Shard(1, 2), stop_after=2)  # of a, c, e
    with pytest.raises(InputError, match="2 of 2 shards haven't ended, such as 1/2; run the stage with --shard 1/2"):
        merge_masks(path)
    assert [make(path, Shard(number, 3)) for number in (1, 2, 3)] == [["d"], ["b", "e"], []]
    merge_masks(path)
    store = MaskStore(path, LABELS)
    assert store.images == IMAGES and [each.name for each in tmp_path.iterdir()] == ["raw.h5"]
    for stem in IMAGES:
        np.testing.assert_array_equal(store.mask(stem), draw(stem, IMAGES[stem])[1])


def test_an_image_that_changed_is_made_anew_by_another_shard(tmp_path):
    path, changed = tmp_path / "raw.h5", {**IMAGES, "e": "another one"}
    make(path, Shard(5, 5))
    assert [make(path, Shard(number, 2), changed) for number in (1, 2)] == [["a", "c", "e"], ["b", "d"]]
    merge_masks(path)
    store = MaskStore(path, LABELS)
    assert store.images == changed
    np.testing.assert_array_equal(store.mask("e"), draw("e", "another one")[1])


def test_shards_add_to_a_finished_file_and_one_process_finishes_theirs(tmp_path):
    path, more = tmp_path / "raw.h5", {**IMAGES, "f": "new"}
    make(path)
    assert [make(path, Shard(number, 2), more) for number in (1, 2)] == [[], ["f"]]
    assert MaskStore(path, LABELS).images == IMAGES  # until it is merged
    assert make(path, images={**more, "g": "newer"}) == ["g"]
    assert MaskStore(path, LABELS).images == {**more, "g": "newer"}
    before = path.stat()
    assert [make(path, Shard(number, 2), more) for number in (1, 2)] == [[], []]
    merge_masks(path)
    assert path.stat() == before and [each.name for each in tmp_path.iterdir()] == ["raw.h5"]


def test_shards_of_other_settings_or_images_are_refused(tmp_path):
    path = tmp_path / "raw.h5"
    make(path, Shard(1, 2))
    make(path, Shard(2, 2), dict(list(IMAGES.items())[:4]))
    with pytest.raises(InputError, match="shard 2/2 is of other images than shard 1/2; run it again with the same"):
        merge_masks(path)
    make(path, Shard(2, 2), attributes={"clearml_model_id": "offline-2"})
    with pytest.raises(InputError, match=r"made with other settings \(clearml_model_id\); remove the folder"):
        merge_masks(path)
    make(other := tmp_path / "other.h5")
    with pytest.raises(InputError, match="made with clearml_model_id = offline-1, this run has"):
        make(other, Shard(1, 2), attributes={"clearml_model_id": "offline-2"})


def test_nothing_to_merge_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"raw\.h5: there are no parts of it; .* --shard first"):
        merge_masks(tmp_path / "raw.h5")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "raw.h5", stop_after=2)
    with pytest.raises(InputError, match="an interrupted run without --shard made; run its command again"):
        merge_masks(tmp_path / "raw.h5")


def test_the_runs_of_all_shards_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "raw.h5"
    for number in (1, 2):
        monkeypatch.setattr("utils.mask_shards.describe_run", lambda number=number: {"command": f"--shard {number}/2"})
        make(path, Shard(number, 2))
    merge_masks(path)
    assert [run["command"] for run in MaskStore(path, LABELS).runs] == ["--shard 1/2", "--shard 2/2"]
    with h5py.File(path) as file:
        assert file["segmentation_mask/a"].dtype == bool
