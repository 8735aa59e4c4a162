"""Which SAM the options mean, and that its checkpoint is read once."""
import argparse
import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from msgspec.structs import replace

from segment_anything import embeddings
from segment_anything.checkpoints import identify
from segment_anything.demo_sam import DEMO_SAM_WEIGHTS
from segment_anything.options import EncoderOptions, Sam, SamOptions
from tests.small_sam import register_small_sam
from tests.torch_threads import torch_threads
from utils import digests as digests_module
from utils.datasets.description import load_description
from utils.digests import digest_file
from utils.errors import InputError
from utils.grey import GreyValues
from utils.options import add_options, options_from

PHANTOM = load_description("phantom")


def from_arguments(cls: type, *arguments: str):
    parser = argparse.ArgumentParser()
    add_options(parser, cls)
    return options_from(cls, parser.parse_args(arguments))


def data_in(folder: Path, **changes) -> SimpleNamespace:
    """The phantoms' data set in a folder, with its images beside it."""
    return SimpleNamespace(description=replace(PHANTOM, **changes), data_dir=folder, derived_dir=folder,
                           image_path=lambda stem: folder / f"{stem}.png",
                           digests=lambda stems: {stem: digest_file(folder / f"{stem}.png") for stem in stems})


def test_the_data_sets_sam_unless_another_is_named(tmp_path):
    data_sets_own = Sam.choose(from_arguments(SamOptions), data_in(tmp_path))
    assert data_sets_own == Sam("demo", DEMO_SAM_WEIGHTS)
    assert "demo SAM" in data_sets_own.notice
    graz = data_in(tmp_path, name="graz", max_grey_value=4095)
    named = Sam.choose(from_arguments(SamOptions, "--sam_type", "medsam", "--embeddings", "bf16"), graz)
    assert named == Sam("medsam", tmp_path / "sam_checkpoints" / "medsam_vit_b.pth", "bf16", GreyValues(4095, "bits"))
    assert (named.name, named.notice, named.preprocessing) == ("medsam_bf16_max4095", "", "squash")
    assert named.folder(graz) == tmp_path / "graz" / "sam_embeddings" / "medsam_bf16_max4095"
    assert named.of_type("vit_h", graz).checkpoint == tmp_path / "sam_checkpoints" / "sam_vit_h_4b8939.pth"
    (tmp_path / "x.pth").touch()
    encoder = from_arguments(EncoderOptions, "--sam_type", "vit_b", "--sam_checkpoint", str(tmp_path / "x.pth"))
    digest = hashlib.sha256(b"").hexdigest()
    chosen = Sam.choose(encoder, graz)
    assert chosen == Sam("vit_b", tmp_path / "x.pth", "float32", GreyValues(4095, "bits"), weights=digest[:12])
    assert chosen.name == f"vit_b_{digest[:12]}_max4095"
    (tmp_path / "sam_checkpoints").mkdir()
    (tmp_path / "sam_checkpoints" / "sam_vit_b_01ec64.pth").touch()  # the same weights at their usual place
    assert Sam.choose(encoder, graz).name == "vit_b_max4095"
    (tmp_path / "x.pth").unlink()
    with pytest.raises(InputError, match=r"x\.pth: no such SAM checkpoint"):  # told where it is named
        Sam.choose(encoder, graz)


def test_an_unknown_type_is_refused():
    with pytest.raises(InputError, match="vit_x: no such SAM type; choose one of vit_h"):
        SamOptions("vit_x")


def test_a_missing_checkpoint_is_refused(tmp_path):
    sam = Sam.choose(SamOptions("vit_b"), data_in(tmp_path))
    for use in (sam.check_present, sam.load, sam.load_decoder, lambda: sam.identity):
        with pytest.raises(InputError, match="no such SAM checkpoint; run"):
            use()


def test_missing_embeddings_are_made_with_the_chosen_precision(monkeypatch, tmp_path):
    sam, data = Sam("small", register_small_sam(monkeypatch, tmp_path), "float16"), data_in(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(600, dtype=np.uint8).reshape(20, 30))
    for made in (1, 0):
        assert sam.embed_missing(data, ["a"], torch.device("cpu")) == made
    embedding = sam.read_embedding(data, "a")
    assert sam.load_decoder().checkpoint == embedding.checkpoint == sam.identity
    assert embedding.original_size == (20, 30) and sam.folder(data).name == "small_float16"


@pytest.mark.parametrize("threads", [1, 3])
def test_without_a_store_the_same_embeddings_are_computed_a_few_at_a_time(monkeypatch, tmp_path, threads):
    checkpoint, data, stems = register_small_sam(monkeypatch, tmp_path), data_in(tmp_path), [*"abcdefgh"]
    for number, stem in enumerate(stems):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30), np.uint8)
        cv2.imwrite(str(tmp_path / f"{stem}.png"), pixels)
    options = from_arguments(SamOptions, "--sam_type", "small", "--sam_checkpoint", str(checkpoint), "--embeddings",
                             "none")
    computed, compute = [], embeddings.compute_embedding
    monkeypatch.setattr(embeddings, "compute_embedding", lambda *given: computed.append(1) or compute(*given))
    with torch_threads(threads):
        stored = list(Sam("small", checkpoint).embeddings(data, stems, torch.device("cpu")))
        shutil.rmtree(tmp_path / "phantom")
        sam = Sam.choose(options, data)
        assert (sam.name, sam.parameters) == ("small", Sam("small", checkpoint).parameters)
        computed.clear()
        streamed = sam.embeddings(data, stems, torch.device("cpu"))
        first = next(streamed)
        assert len(computed) <= threads + 1
        for one, other in zip(stored, [first, *streamed], strict=True):
            assert torch.equal(one.features["image"], other.features["image"])
            assert one.original_size == other.original_size and one.checkpoint == other.checkpoint
    assert not (tmp_path / "phantom").exists()


def test_a_checkpoint_is_hashed_once_until_it_changes(monkeypatch, tmp_path):
    path, digests = tmp_path / "a.pth", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: digests.append(given) or digest(*given))
    path.write_bytes(b"abc")
    monkeypatch.setattr(digests_module, "SETTLED", -1e20)  # as if it had been written long ago
    (tmp_path / "link.pth").symlink_to(path)
    first, again, linked = identify(path), identify(tmp_path / "." / "a.pth"), identify(tmp_path / "link.pth")
    assert len(digests) == 1
    assert first == again
    assert (linked.name, linked.sha256) == ("link.pth", first.sha256)
    path.write_bytes(b"abcd")
    assert identify(path).sha256 != first.sha256
