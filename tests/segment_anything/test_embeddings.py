"""Embeddings against the package's own predictor, and their files."""
import math
import os

import cv2
import h5py
import numpy as np
import pytest
import torch

import segment_anything.embeddings as embeddings_module
from segment_anything import SamPredictor
from segment_anything.checkpoints import CheckpointId, identify
from segment_anything.embeddings import (
    ImageEmbedding,
    compute_embedding,
    compute_embeddings,
    encoder_input,
    load_embedding,
    save_embedding,
    save_missing_embeddings,
    to_8_bit,
)
from segment_anything.registry import load_sam
from tests.small_sam import SIDE, register_small_sam
from tests.torch_threads import torch_threads
from utils.errors import InputError
from utils.grey import STORED, GreyValues
from utils.locks import exclusive
from utils.ranks import Shard, work_on

SOME_ID = CheckpointId("some.pth", "0" * 64)


def radiograph(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(height)
    smooth = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(smooth * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    return register_small_sam(monkeypatch, tmp_path)


@pytest.mark.parametrize("size", [(61, 90), (200, 133), (128, 128), (257, 40)])
def test_embedding_equals_the_packages_predictor(checkpoint, size):
    sam = load_sam("small", checkpoint)
    grey = radiograph(*size)
    predictor = SamPredictor(sam)
    predictor.set_image(np.repeat(grey[..., None], 3, axis=2))
    embedding = compute_embedding(sam, grey, "longest_side", SOME_ID)
    torch.testing.assert_close(embedding.features["image"][None], predictor.features, rtol=0, atol=1e-5)
    assert embedding.features["image"].dtype == torch.float32
    assert embedding.original_size == predictor.original_size == size
    assert embedding.input_size == predictor.input_size
    assert embedding.encoder_input_size == SIDE


def test_16_bit_images_are_scaled_to_8_bit(checkpoint):
    grey = radiograph(50, 80, np.uint16)
    expected = np.floor(grey / 65535 * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(to_8_bit(grey), expected)
    np.testing.assert_array_equal(to_8_bit(np.array([[0, 65535]], np.uint16)), [[0, 255]])
    sam = load_sam("small", checkpoint)
    from_16, from_8 = (compute_embedding(sam, image, "longest_side", SOME_ID).features["image"]
                       for image in (grey, expected))
    assert torch.equal(from_16, from_8)


def test_medsam_ignores_the_aspect_ratio_and_scales_by_minimum_and_maximum(checkpoint):
    sam = load_sam("small", checkpoint)
    grey = radiograph(60, 100) // 2 + 30
    image, input_size = encoder_input(sam, grey, "squash")
    colors = np.repeat(grey[..., None], 3, axis=2)
    resized = cv2.resize(colors, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    assert resized.dtype == np.uint8
    expected = (resized - resized.min()) / np.clip(resized.max() - resized.min(), 1e-8, None)
    np.testing.assert_array_equal(image[0].permute(1, 2, 0).numpy(), expected.astype(np.float32))
    assert input_size == (SIDE, SIDE)
    assert (image.min(), image.max()) == (0, 1)


def test_a_blank_image_has_an_embedding(checkpoint):
    sam = load_sam("small", checkpoint)
    blank = np.full((20, 30), 7, np.uint8)
    for preprocessing in ("longest_side", "squash"):
        assert compute_embedding(sam, blank, preprocessing, SOME_ID).features["image"].isfinite().all()


@pytest.fixture
def images(tmp_path):
    paths = []
    for stem, size in [("a", (40, 70)), ("b", (90, 50))]:
        paths.append((stem, tmp_path / f"{stem}.png"))
        cv2.imwrite(str(tmp_path / f"{stem}.png"), radiograph(*size))
    return paths


def test_files_hold_what_was_computed_and_a_rerun_skips_them(monkeypatch, tmp_path, checkpoint, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    assert save_missing_embeddings(images[:1], folder, "small", checkpoint, cpu) == 1
    assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a.h5", "b.h5"]
    with h5py.File(folder / "b.h5") as file:
        assert file["embedding"].compression is None
        assert (list(file.attrs["original_size"]), list(file.attrs["input_size"])) == ([90, 50], [128, 71])
        assert (file.attrs["checkpoint"], file.attrs["encoder_input_size"]) == ("small.pth", SIDE)
    loaded = load_embedding(folder / "b.h5", identify(checkpoint))
    expected = compute_embedding(load_sam("small", checkpoint), radiograph(90, 50), "longest_side",
                                 identify(checkpoint))
    torch.testing.assert_close(loaded.features["image"], expected.features["image"], rtol=0, atol=1e-5)
    assert (loaded.original_size, loaded.input_size, loaded.checkpoint) == (
        (90, 50), (128, 71), identify(checkpoint))
    monkeypatch.setattr(embeddings_module, "load_sam", None)  # nothing is missing, so nothing is loaded
    assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 0


def test_a_replaced_image_gets_another_embedding_and_renamed_weights_are_the_same(tmp_path, checkpoint, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    save_missing_embeddings(images, folder, "small", checkpoint, cpu)
    cv2.imwrite(str(images[0][1]), radiograph(40, 66))
    renamed = checkpoint.rename(checkpoint.with_name("renamed.pth"))
    assert save_missing_embeddings(images, folder, "small", renamed, cpu) == 1
    assert load_embedding(folder / "a.h5", identify(renamed)).original_size == (40, 66)


@pytest.mark.parametrize("seconds", [0, 10])
def test_an_image_replaced_by_one_of_the_same_size_gets_another_embedding(tmp_path, checkpoint, images, seconds):
    """At once, or later with the times of the old one."""
    folder, cpu, (path, other) = tmp_path / "embeddings", torch.device("cpu"), (path for _, path in images)
    times = path.stat().st_mtime_ns - seconds * 10 ** 9
    for each in (path, other):
        cv2.imwrite(str(each), radiograph(40, 70)[:, ::-1] if each == other else radiograph(40, 70))
        os.utime(each, ns=(times, times))
    save_missing_embeddings(images, folder, "small", checkpoint, cpu)
    assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 0
    before, wanted = (load_embedding(folder / f"{stem}.h5", identify(checkpoint)).features["image"] for stem in "ab")
    pixels = other.read_bytes()
    path.write_bytes(pixels)
    os.utime(path, ns=(times, times))
    assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 1
    after = load_embedding(folder / "a.h5", identify(checkpoint)).features["image"]
    assert torch.equal(after, wanted) and not torch.equal(after, before)


def test_an_image_that_is_read_in_another_way_gets_another_embedding(tmp_path, checkpoint, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    for grey, made in ((STORED, 2), (GreyValues(inverted=True), 2), (GreyValues(inverted=True), 0)):
        assert save_missing_embeddings(images, folder, "small", checkpoint, cpu, grey=grey) == made


@pytest.mark.parametrize("position", [5, 2000, -5])
def test_a_flipped_bit_of_an_embedding_is_found(tmp_path, checkpoint, images, position):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    save_missing_embeddings(images, folder, "small", checkpoint, cpu)
    content = bytearray((folder / "a.h5").read_bytes())
    content[position] ^= 1
    (folder / "a.h5").write_bytes(content)
    if save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 0:  # by its first line it looked well
        with pytest.raises(InputError, match=r"a\.h5: damaged .* move it away"):
            load_embedding(folder / "a.h5", identify(checkpoint))


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    broken = ImageEmbedding({"image": torch.tensor([[[math.nan]]])}, (20, 40), (32, 64), 64, SOME_ID)
    with pytest.raises(InputError, match=r"a\.h5: SAM gives numbers that aren't finite"):
        save_embedding(tmp_path / "a.h5", broken)
    large = ImageEmbedding({"image": torch.tensor([[[1e30]]])}, (20, 40), (32, 64), 64, SOME_ID)
    with pytest.raises(InputError, match=r"a\.h5: SAM gives numbers that aren't finite"):
        save_embedding(tmp_path / "a.h5", large, np.float16)
    save_embedding(tmp_path / "a.h5", large)
    with h5py.File(tmp_path / "a.h5", "a", locking=False) as file:
        file["embedding"][0, 0, 0] = np.inf
    with h5py.File(tmp_path / "a.h5") as ours, h5py.File(tmp_path / "b.h5", "w") as theirs:
        theirs.attrs.update(ours.attrs)
        ours.copy("embedding", theirs)
    with pytest.raises(InputError, match=r"b\.h5: damaged .* isn't finite"):
        load_embedding(tmp_path / "b.h5", SOME_ID)


def test_embeddings_of_another_preprocessing_are_made_anew(monkeypatch, tmp_path, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    for preprocessing, made in [("longest_side", 2), ("longest_side", 0), ("squash", 2), ("squash", 0)]:
        checkpoint = register_small_sam(monkeypatch, tmp_path, preprocessing=preprocessing)
        assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == made
        embedding = load_embedding(folder / "a.h5", identify(checkpoint))
        assert embedding.preprocessing == preprocessing
        with h5py.File(folder / "a.h5") as file:  # the layout of SAM's own stays as it was
            assert list(file) == ["embedding"]
            assert ("preprocessing" in file.attrs) == (preprocessing == "squash")


def test_every_feature_map_is_kept(tmp_path):
    features = {"image": torch.rand(3, 2, 4), "fine": torch.rand(2, 8, 16)}
    save_embedding(tmp_path / "a.h5", ImageEmbedding(features, (20, 40), (32, 64), 64, SOME_ID))
    loaded = load_embedding(tmp_path / "a.h5", SOME_ID).features
    assert loaded.keys() == features.keys()
    assert all(torch.equal(loaded[name], features[name]) for name in features)


def test_images_of_one_batch_get_their_own_embeddings(monkeypatch, tmp_path, checkpoint, images):
    one, together = tmp_path / "one", tmp_path / "together"
    save_missing_embeddings(images, one, "small", checkpoint, torch.device("cpu"))
    monkeypatch.setitem(embeddings_module.IMAGES_AT_ONCE, "cpu", 4)  # as on a GPU
    save_missing_embeddings(images, together, "small", checkpoint, torch.device("cpu"))
    for stem, _ in images:
        alone, batched = (load_embedding(folder / f"{stem}.h5", identify(checkpoint)) for folder in (one, together))
        torch.testing.assert_close(batched.features["image"], alone.features["image"], rtol=0, atol=1e-5)
        assert (batched.original_size, batched.input_size) == (alone.original_size, alone.input_size)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_are_embedded_side_by_side_in_their_order_and_as_each_alone(checkpoint, images, threads):
    sam, paths = load_sam("small", checkpoint), [path for _, path in images] * 3
    with torch_threads(1):
        alone = [compute_embedding(sam, cv2.imread(str(path), cv2.IMREAD_UNCHANGED), "longest_side", SOME_ID)
                 for path in paths]
    with torch_threads(threads):
        together = list(compute_embeddings(sam, paths, "longest_side", SOME_ID))
    for ours, one in zip(together, alone, strict=True):
        assert torch.equal(ours.features["image"], one.features["image"])
        assert (ours.original_size, ours.input_size) == (one.original_size, one.input_size)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("bf16", 0.1)])
def test_half_precision_halves_the_files_and_is_read_as_float32(tmp_path, checkpoint, images, precision, tolerance):
    cpu = torch.device("cpu")
    for each in ("float32", precision):
        save_missing_embeddings(images, tmp_path / each, "small", checkpoint, cpu, each)
    for stem, _ in images:
        exact, half = (load_embedding(tmp_path / each / f"{stem}.h5", identify(checkpoint)).features["image"]
                       for each in ("float32", precision))
        assert half.dtype == torch.float32
        assert not torch.equal(half, exact)
        torch.testing.assert_close(half, exact, rtol=0, atol=tolerance)
    with h5py.File(tmp_path / precision / "a.h5") as file:
        assert file["embedding"].dtype == np.float16


def test_a_damaged_file_is_computed_again(tmp_path, checkpoint, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    save_missing_embeddings(images, folder, "small", checkpoint, cpu)
    os.truncate(folder / "a.h5", 2000)
    with pytest.raises(InputError, match=r"a\.h5: damaged .* move it away and run"):
        load_embedding(folder / "a.h5", identify(checkpoint))
    assert save_missing_embeddings(images, folder, "small", checkpoint, cpu) == 1
    load_embedding(folder / "a.h5", identify(checkpoint))


def test_embeddings_of_another_checkpoint_are_refused(monkeypatch, tmp_path, checkpoint, images):
    folder, cpu = tmp_path / "embeddings", torch.device("cpu")
    save_missing_embeddings(images, folder, "small", checkpoint, cpu)
    other = register_small_sam(monkeypatch, tmp_path, "other", seed=1)
    message = r"a\.h5: .* computed with the checkpoint small\.pth .*, but other\.pth .* is asked for; use that"
    with pytest.raises(InputError, match=message):
        load_embedding(folder / "a.h5", identify(other))
    with pytest.raises(InputError, match=message):
        save_missing_embeddings(images, folder, "other", other, cpu)
    same_name = register_small_sam(monkeypatch, tmp_path, "small", seed=2)
    with pytest.raises(InputError, match="asked for"):
        load_embedding(folder / "a.h5", identify(same_name))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match=r"no such embedding; make it with .*generate_img_embeddings"):
        load_embedding(tmp_path / "none.h5", SOME_ID)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(InputError, match=r"foreign\.h5: damaged"):
        load_embedding(tmp_path / "foreign.h5", SOME_ID)


def test_an_embedding_appears_complete_or_not_at_all(monkeypatch, tmp_path, checkpoint):
    embedding = compute_embedding(load_sam("small", checkpoint), radiograph(9, 14), "longest_side", SOME_ID)
    broken = embedding.__class__(**{**vars(embedding), "original_size": object()})
    with pytest.raises(TypeError):
        save_embedding(tmp_path / "out" / "x.h5", broken)
    assert not list(tmp_path.glob("out/*"))


def test_an_unreadable_image_is_named(tmp_path, checkpoint):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png: not a readable image"):
        save_missing_embeddings([("bad", tmp_path / "bad.png")], tmp_path / "e", "small", checkpoint,
                                torch.device("cpu"))


def test_a_shard_does_not_wait_for_another_one(checkpoint, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), radiograph(30, 40))
    folder = tmp_path / "embeddings"
    with exclusive(Shard(1, 2).to_lock(folder)), work_on(Shard(2, 2)):
        assert save_missing_embeddings([("a", tmp_path / "a.png")], folder, "small", checkpoint,
                                       torch.device("cpu")) == 1
