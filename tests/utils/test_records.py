"""Records that are damaged."""
import json

import msgspec
import numpy as np
import pytest

from utils.errors import InputError
from utils.records import read_intact, read_record, write_record
from utils.tracking.models import ModelRecord
from utils.tracking.offline_runs import SessionEnd

MODEL = ModelRecord("unet.pt", {"lr": 1e-3, "input_size": [4, 6], "bf16": False}, ("a", "b"), (), "offline-1", 12.5,
                    "0123")
CONTENTS = [(MODEL, ModelRecord), (SessionEnd(12.5, "failed", "boom", ("offline-2",)), SessionEnd),
            ({"server": {"offline-1": "2"}}, dict[str, dict[str, str]])]


@pytest.mark.parametrize(("content", "kind"), CONTENTS)
def test_round_trip_also_of_older_records(tmp_path, content, kind):
    path = tmp_path / "record.json"
    write_record(path, content)
    assert read_record(path, kind) == content
    path.write_text(json.dumps(msgspec.to_builtins(content)))  # without a checksum
    assert read_record(path, kind) == content


@pytest.mark.parametrize(("content", "kind"), CONTENTS)
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path, content, kind):
    path, rng = tmp_path / "record.json", np.random.default_rng(0)
    write_record(path, content)
    written, found = path.read_bytes(), 0
    for position, bit in zip(rng.integers(0, len(written), 200), rng.integers(0, 8, 200), strict=True):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1 << bit]) + written[position + 1:])
        try:
            assert read_record(path, kind) == content
        except InputError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 100


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"weights": 1}',
                                  json.dumps({**msgspec.to_builtins(MODEL), "weights": "../x"}).encode()])
def test_a_record_that_is_none_is_left_out_and_named_once(tmp_path, capsys, text):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_record(good, MODEL)
    bad.write_bytes(text)
    for _ in range(2):
        assert list(read_intact([bad, good], ModelRecord)) == [(good, MODEL)]
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(bad) in line and "restore" in line
