"""Files are known by their bytes, and read once while they stay as they are."""
import hashlib
import os
import time

import pytest

from utils import digests
from utils.digests import Origins, digest_file, digest_files
from utils.files import write_bytes


@pytest.fixture
def settled(monkeypatch):
    """As if all files had been written long ago, and this were a new process."""
    monkeypatch.setattr(digests, "SETTLED", -1e20)
    monkeypatch.setattr(digests, "_known", {})


@pytest.fixture
def reads(monkeypatch):
    """The files that are read."""
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    return read


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_was_just_written_may_change_within_the_resolution_of_its_times(tmp_path):
    path = tmp_path / "a.png"
    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        assert digest_file(path) == sha256(content)


def test_other_bytes_of_the_same_size_and_time_are_another_file(settled, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    assert digest_file(path) == sha256(b"one")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.02)
    (tmp_path / "b.png").write_bytes(b"two")
    (tmp_path / "b.png").replace(path)  # as rsync and archives do
    os.utime(path, ns=times)
    assert digest_file(path) == sha256(b"two")
    time.sleep(0.02)
    path.write_bytes(b"six")  # in place
    os.utime(path, ns=times)
    assert digest_file(path) == sha256(b"six")


def test_a_later_run_reads_what_changed_alone(settled, reads, tmp_path, monkeypatch):
    paths, index = [tmp_path / f"{number}.png" for number in range(5)], tmp_path / "digests.json"
    for path in paths:
        path.write_bytes(path.name.encode())
    expected = [sha256(path.name.encode()) for path in paths]
    assert digest_files(paths, index) == expected and len(reads) == 5
    for change, count in ((lambda: None, 0), (lambda: paths[3].write_bytes(b"other"), 1),
                          (lambda: index.write_bytes(b"["), 5)):
        monkeypatch.setattr(digests, "_known", {})
        reads.clear()
        change()
        assert digest_files(paths, index) == [sha256(path.read_bytes()) for path in paths]
        assert len(reads) == count


@pytest.mark.slow
def test_ten_thousand_images_are_looked_at_in_seconds(settled, reads, tmp_path, monkeypatch):
    paths = [tmp_path / f"{number:05}.png" for number in range(10_086)]
    for path in paths:
        path.write_bytes(path.name.encode())
    digest_files(paths, tmp_path / "digests.json")
    monkeypatch.setattr(digests, "_known", {})
    reads.clear()
    start = time.process_time()
    digest_files(paths, tmp_path / "digests.json")
    assert time.process_time() - start < 5 and not reads


def test_prepared_images_are_made_anew_where_their_origin_or_they_themselves_are_others(tmp_path):
    images = {tmp_path / "img" / "1.png": "a", tmp_path / "img" / "2.png": "b"}
    first, second = images

    def prepare(origins, foreign=None) -> list[str]:
        with Origins(tmp_path / "prepared.json") as known:
            outdated = known.outdated(origins)
            for path in outdated:
                write_bytes(path, origins[path].encode())
                known.note(path, origins[path])
        return [path.stem for path in outdated]

    write_bytes(first, b"somebody's")
    assert prepare(images) == ["1", "2"]
    assert prepare(images) == []
    assert prepare({**images, second: "c"}) == ["2"]
    first.write_bytes(b"x")
    assert prepare({**images, second: "c"}) == ["1"]
    second.unlink()
    assert prepare({**images, second: "c"}) == ["2"]
    (tmp_path / "prepared.json").write_bytes(b"[")
    assert prepare({**images, second: "c"}) == ["1", "2"]
