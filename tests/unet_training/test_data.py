"""Splits, masks and views on a small data set described like GRAZPEDWRI-DX: 8 images of 30 x 20 pixels (W x H)."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from unet_training import data as segmentation_dataset
from unet_training.data import (
    EpochLoader,
    ImageDataset,
    LabeledDataset,
    PseudoLabelDataset,
    resident_batches,
)
from unet_training.samplers import HalfAndHalf
from utils.datasets.annotated import AnnotatedImages, load_image, open_dataset, resize_masks
from utils.datasets.description import DatasetDescription, Metadata, StemList
from utils.datasets.sources import AnnotationFile, CvatMasks, StoredMasks
from utils.errors import InputError
from utils.files import write_png
from utils.mask_store import MaskStore, MaskWriter

HEIGHT, WIDTH = 20, 30
BOX = 'points="2,3;12,3;12,8;2,8"'  # x 2 to 12, y 3 to 8: in the left half
TRAIN, VAL, TEST = ["5_WRI-L1", "3_WRI-R1", "4_WRI-L1"], ["6_WRI-L1"], ["7_WRI-R1"]
UNLABELED = ["1_WRI-L1", "2_WRI-R1"]
LATERAL = "8_WRI-L2"


def cvat(stems: list[str], width: int = WIDTH) -> str:
    shape = f'<polygon label="Knochen" {BOX}><attribute name="Anatomie">Radius</attribute></polygon>'
    images = "".join(f'<image name="{stem}.png" width="{width}" height="{HEIGHT}" subset="{subset}">{shape}</image>'
                     for subset, members in (("Train", stems[:-1]), ("Validation", stems[-1:])) for stem in members)
    return f"<annotations><version>1.1</version>{images}</annotations>"


@pytest.fixture
def description() -> DatasetDescription:
    masks = CvatMasks(train=(AnnotationFile("train.xml", "Train"),), val=(AnnotationFile("train.xml", "Validation"),),
                      test=(AnnotationFile("test.xml"),), attribute="Anatomie",
                      unlabeled_ground_truth=(AnnotationFile("ground_truth.xml"),))
    metadata = Metadata("table.csv", "stem", {"projection": "1"}, {"side": "R"})
    return DatasetDescription(
        "hands", ("Ulna", "Radius"), (10, 15), "img", "python -m prepare", "not_annotated", "demo", masks, 0.25, 0.5,
        (2.0, 3.0), metadata, StemList("order.csv", "file_stem"), StemList("sample.csv", "filestem"))


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    stems = [*TRAIN, *VAL, *TEST, *UNLABELED]
    for stem in stems:
        write_png(tmp_path / "img" / f"{stem}.png", rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
    (tmp_path / "train.xml").write_text(cvat([*TRAIN, LATERAL, *VAL]))
    (tmp_path / "test.xml").write_text(cvat(TEST))
    (tmp_path / "ground_truth.xml").write_text(cvat(["unused", UNLABELED[1]]))
    rows = "".join(f"{stem},{stem[-2]},{2 if stem == LATERAL else 1}\n" for stem in [*stems, LATERAL])
    (tmp_path / "table.csv").write_text("\ufeffstem,side,projection\n" + rows, encoding="utf-8")
    (tmp_path / "order.csv").write_text(",file_stem\n" + "".join(f"{i},{stem}\n" for i, stem in enumerate(TRAIN)))
    (tmp_path / "sample.csv").write_text(f",filestem\n0,{UNLABELED[1]}\n")
    return tmp_path


def test_splits_follow_the_lists_and_leave_other_projections_out(folder, description):
    data = AnnotatedImages(description, folder)
    assert data.stems("train") == TRAIN
    assert data.stems("train", 2) == TRAIN[:2]
    assert (data.stems("val"), data.stems("test")) == (VAL, TEST)
    assert data.unlabeled_stems(2, split500=True, seed=0) == UNLABELED[1:]
    assert data.unlabeled_stems(2, split500=False, seed=0) == UNLABELED


def test_a_stage_may_take_annotated_images_and_choose_by_the_table(folder, description):
    data = AnnotatedImages(description, folder)
    write_png(folder / "img" / f"{LATERAL}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    table = folder / "table.csv"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    casts = ["1" if row.startswith(("4_", "2_", "7_")) else "" for row in rows]
    lines = [f"{header},cast", *(f"{row},{cast}" for row, cast in zip(rows, casts, strict=True))]
    table.write_text("\n".join(lines), encoding="utf-8")
    everything = sorted([*TRAIN, *VAL, *TEST, *UNLABELED])
    assert data.select() == UNLABELED and data.select(include_annotated=True) == everything
    assert data.select(where={"cast": "1"}) == ["2_WRI-R1"]
    assert data.select(True, {"cast": "1"}) == ["2_WRI-R1", "4_WRI-L1", "7_WRI-R1"]
    assert data.select(True, {"cast": "1", "side": "R"}) == ["2_WRI-R1", "7_WRI-R1"]
    assert data.select(True, {"cast": ""}) == ["1_WRI-L1", "3_WRI-R1", "5_WRI-L1", "6_WRI-L1"]
    with pytest.raises(InputError, match="none of its images is chosen"):
        data.select(where={"cast": "2"})
    with pytest.raises(InputError, match="has no column 'metal'"):
        data.select(where={"metal": "1"})
    masks = replace(description.masks, train=(AnnotationFile("by_stem.xml"),))
    (folder / "by_stem.xml").write_text(cvat(TRAIN))
    with pytest.raises(InputError, match="hands has no table of its images"):
        AnnotatedImages(replace(description, masks=masks, metadata=None), folder).select(where={"cast": "1"})


def test_files_are_found_in_their_other_places(folder, description):
    places = {"img": "theirs/pictures", "train.xml": "train.xml", "table.csv": "theirs/rows.csv"}
    own = AnnotatedImages(description, folder)
    masks, order, unlabeled = own.mask(TRAIN[1]), own.stems("train"), own.unlabeled_stems(2, False, 0)
    moved = replace(description, other_places={name: f"{folder.name}_2/{place}" for name, place in places.items()})
    (folder.parent / f"{folder.name}_2" / "theirs").mkdir(parents=True)
    for name, place in places.items():
        (folder / name).rename(folder.parent / f"{folder.name}_2" / place)
    with pytest.raises(InputError, match=r"table\.csv: no such table"):
        AnnotatedImages(description, folder)
    data = AnnotatedImages(moved, folder)
    np.testing.assert_array_equal(data.mask(TRAIN[1]), masks)
    assert data.stems("train") == order and data.unlabeled_stems(2, False, 0) == unlabeled
    (folder / "img").mkdir()  # the data set's own folder comes first
    with pytest.raises(InputError, match=rf"{folder.name}/img/3_WRI-R1\.png: no such image"):
        AnnotatedImages(moved, folder).stems("train")


def test_missing_lists_are_said_and_replaced(folder, description, capsys):
    (folder / "order.csv").unlink()
    (folder / "sample.csv").unlink()
    data = AnnotatedImages(description, folder)
    assert data.stems("train", 2) == sorted(TRAIN)[:2]
    assert data.unlabeled_stems(2, split500=True, seed=0) == UNLABELED
    said = capsys.readouterr().err
    assert "order.csv is not there" in said and "sample.csv is not there" in said


def test_a_missing_sample_is_drawn_by_the_seed(folder, description, monkeypatch):
    monkeypatch.setattr("utils.datasets.annotated.UNLABELED_SAMPLE", 5)
    (folder / "sample.csv").unlink()
    with (folder / "table.csv").open("a") as table:
        for number in range(20):
            write_png(folder / "img" / f"9{number}_WRI-L1.png", np.zeros((4, 4), np.uint8))
            table.write(f"9{number}_WRI-L1,L,1\n")
    data = AnnotatedImages(description, folder)
    first, again, other = (data.unlabeled_stems(2, True, seed) for seed in (1, 1, 2))
    assert first == again == sorted(first) != other
    assert len(set(first)) == 5 and not set(first) & set(TRAIN + VAL + TEST)


def test_masks_of_right_hands_are_mirrored(folder, description):
    data = AnnotatedImages(description, folder)
    left, right = data.mask(TRAIN[0]), data.mask(TRAIN[1])
    assert left.shape == (2, 10, 15) and left.dtype == bool
    assert left[1, 2, 3] and not left[1, 2, 12] and not left[0].any()
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[3:9, 2:13] = 1
    expected = cv2.resize(drawn, (15, 10), interpolation=cv2.INTER_NEAREST) > 0
    np.testing.assert_array_equal(left[1], expected)
    np.testing.assert_array_equal(right[1], expected[:, ::-1])


def test_the_stem_tells_the_side_where_no_table_does(folder, description):
    with_table = AnnotatedImages(description, folder)
    masks = replace(description.masks, mirror_stems_with="WRI-R", train=(AnnotationFile("by_stem.xml"),))
    (folder / "by_stem.xml").write_text(cvat(TRAIN))
    by_stem = AnnotatedImages(replace(description, masks=masks, metadata=None), folder)
    for stem in TRAIN:
        np.testing.assert_array_equal(by_stem.mask(stem), with_table.mask(stem))


def test_ground_truth_of_unlabeled_images_is_known_where_it_is_given(folder, description):
    data = AnnotatedImages(description, folder)
    assert [data.has_ground_truth(stem) for stem in (*UNLABELED, TRAIN[0], "nobody")] == [False, True, True, False]
    np.testing.assert_array_equal(data.mask(UNLABELED[1]), data.mask(TRAIN[1]))  # both right hands
    with pytest.raises(InputError, match="1_WRI-L1: its ground truth is not known"):
        data.mask(UNLABELED[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("resize_dtype", ["stored", "float32"])
def test_load_image_normalizes_after_a_bilinear_resize(tmp_path, description, dtype, resize_dtype):
    largest = np.iinfo(dtype).max
    image = np.random.default_rng(1).integers(0, largest, (HEIGHT, WIDTH)).astype(dtype)
    write_png(tmp_path / "a.png", image)
    scaled = torch.from_numpy(image / largest)[None, None]
    expected = torch.nn.functional.interpolate(scaled, (9, 13), mode="bilinear", align_corners=False)[0].numpy()
    loaded = load_image(tmp_path / "a.png", replace(description, input_size=(9, 13), resize_dtype=resize_dtype))
    assert loaded.shape == (1, 9, 13) and loaded.dtype == np.float32
    values = (loaded.astype(np.float64) * description.std + description.mean) * largest
    assert np.abs(values - expected * largest).max() < (1 if resize_dtype == "stored" else 1e-5 * largest)
    whole = np.abs(values - values.round()).max() < 1e-5 * largest if dtype == np.uint8 else True
    assert whole == (resize_dtype == "stored" or dtype == np.uint16)


def test_another_normalization_leaves_the_data_set_as_it_was(folder, description):
    data = AnnotatedImages(description, folder)
    other = data.with_input(data.description.input_size, 0.5, 0.25)
    assert (data.description, other.description) == (description, replace(description, mean=0.5, std=0.25))
    first, second = (LabeledDataset(view, TRAIN)[0] for view in (data, other))
    np.testing.assert_allclose(second[0] * 0.25 + 0.5, first[0] * 0.5 + 0.25, atol=1e-6)
    assert torch.equal(first[1], second[1])


def test_resize_masks_keeps_channels_apart():
    masks = np.zeros((3, 8, 12), bool)
    masks[1, :4, :3] = True
    resized = resize_masks(masks, (4, 24))
    assert resized.shape == (3, 4, 24)
    assert resized[1, :2, :6].all() and resized.sum() == 12


def test_labeled_view(folder, description):
    data = AnnotatedImages(description, folder)
    view = LabeledDataset(data, data.stems("train"))
    image, mask = view[1]
    assert len(view) == 3 and view.stems == TRAIN
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.float32, (1, 10, 15), torch.bool, (2, 10, 15))
    np.testing.assert_array_equal(image, load_image(data.image_path(TRAIN[1]), description))
    np.testing.assert_array_equal(mask, data.mask(TRAIN[1]))


def test_resident_batches_are_a_loaders_and_leave_the_same_random_numbers(folder, description):
    data = AnnotatedImages(description, folder)
    view, found = LabeledDataset(data, data.stems("train")), []
    sampler = RandomSampler(view, replacement=True, num_samples=7)
    for batches in (DataLoader(view, 2, sampler=sampler), resident_batches(view, 2, torch.device("cpu"), sampler)):
        torch.manual_seed(3)
        found.append([*batches, *batches, (torch.rand(5), torch.rand(5))])
    assert [len(images) for images, _ in found[1]] == [2, 2, 2, 1, 2, 2, 2, 1, 5]
    for (images, masks), (their_images, their_masks) in zip(*found, strict=True):
        assert torch.equal(images, their_images) and torch.equal(masks, their_masks)
    in_order = torch.cat([images for images, _ in resident_batches(view, 2, torch.device("cpu"))])
    assert torch.equal(in_order, torch.stack([image for image, _ in (view[index] for index in range(len(view)))]))


def write_masks(path: Path, stems: list[str], shape: tuple[int, ...]) -> MaskStore:
    rng = np.random.default_rng(0)
    with MaskWriter(path, ("Ulna", "Radius"), {"made_by": "test"}) as writer:
        for stem in stems:
            writer.write(stem, rng.random(shape) < 0.5)
    return MaskStore(path, ("Ulna", "Radius"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pseudo_label_view_pairs_images_and_masks_in_every_worker(folder, description, num_workers):
    data = AnnotatedImages(description, folder)
    stems = [*UNLABELED, *TRAIN]
    store = write_masks(folder / "raw.h5", stems, (2, 10, 15))
    store.mask(stems[0])  # the parent's file is open
    view = PseudoLabelDataset(data, stems, store)
    batches = list(DataLoader(view, batch_size=2, num_workers=num_workers))
    masks = torch.cat([mask for _, mask in batches])
    images = torch.cat([image for image, _ in batches])
    assert masks.dtype == torch.bool and len(view) == 5
    for index, stem in enumerate(stems):
        np.testing.assert_array_equal(masks[index], store.mask(stem))
        np.testing.assert_array_equal(images[index], load_image(data.image_path(stem), description))


@pytest.mark.parametrize(("most", "kept"), [(2, True), (1, False)])
def test_pseudo_labels_are_decoded_once_while_they_are_few(folder, description, monkeypatch, most, kept):
    monkeypatch.setattr(segmentation_dataset, "MOST_KEPT_IMAGES", most)
    data = AnnotatedImages(description, folder)
    view = PseudoLabelDataset(data, UNLABELED, write_masks(folder / "raw.h5", UNLABELED, (2, 10, 15)))
    first = view[1]
    data.image_path(UNLABELED[1]).unlink()
    if kept:
        assert all(torch.equal(a, b) for a, b in zip(view[1], first, strict=True))
    else:
        with pytest.raises(InputError, match="no such image"):
            view[1]


def test_pseudo_label_view_refuses_other_sizes_and_missing_masks(folder, description):
    data = AnnotatedImages(description, folder)
    store = write_masks(folder / "raw.h5", UNLABELED, (2, 15, 10))
    with pytest.raises(InputError, match=r"size \(15, 10\)"):
        PseudoLabelDataset(data, UNLABELED, store)
    with pytest.raises(InputError, match="holds no mask of 5_WRI-L1"):
        PseudoLabelDataset(data, [*UNLABELED, TRAIN[0]], store)


def test_image_view_gives_the_stem(folder, description):
    data = AnnotatedImages(description, folder)
    image, stem = ImageDataset(data, UNLABELED)[1]
    assert stem == UNLABELED[1]
    np.testing.assert_array_equal(image, load_image(data.image_path(stem), description))


def remove_image(folder: Path) -> None:
    (folder / "img" / f"{TRAIN[2]}.png").unlink()


def resize_image(folder: Path) -> None:
    write_png(folder / "img" / f"{TRAIN[2]}.png", np.zeros((WIDTH, HEIGHT), np.uint8))


def spoil_image(folder: Path) -> None:
    (folder / "img" / f"{TRAIN[2]}.png").write_bytes(b"no image")


def cut_image(folder: Path) -> None:
    path = folder / "img" / f"{TRAIN[2]}.png"
    path.write_bytes(path.read_bytes()[:80])


def remove_table(folder: Path) -> None:
    (folder / "table.csv").unlink()


def rename_column(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("side", "laterality"), encoding="utf-8")


def annotate_twice(folder: Path) -> None:
    (folder / "test.xml").write_text(cvat([*TEST, VAL[0]]))


def change_order(folder: Path) -> None:
    (folder / "order.csv").write_text(f",file_stem\n0,{TRAIN[0]}\n1,{TRAIN[1]}\n")


def other_subset(folder: Path) -> None:
    path = folder / "train.xml"
    path.write_text(path.read_text().replace('"Validation"', '"Val"'))


@pytest.mark.parametrize(("spoil", "message"), [
    (remove_image, r"4_WRI-L1\.png: no such image, .*python -m prepare"),
    (resize_image, "the image is 20 x 30 pixels, its annotation says 30 x 20"),
    (spoil_image, "not a readable image"),
    (cut_image, r"4_WRI-L1\.png: not a readable image"),
    (remove_table, r"table\.csv: no such table"),
    (rename_column, "has no column 'side'"),
    (annotate_twice, "6_WRI-L1 is annotated in another"),
    (change_order, r"order\.csv: must list each training image once, differs in 4_WRI-L1"),
    (other_subset, "no image is left in the val split"),
])
def test_wrong_data_are_named(folder, description, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        data = AnnotatedImages(description, folder)
        LabeledDataset(data, data.stems("train"))
        data.mask(TRAIN[0])


@pytest.mark.parametrize("num", [0, -1, 4])
def test_more_labeled_images_than_there_are(folder, description, num):
    with pytest.raises(InputError, match="hands has 3, take 1 to 3"):
        AnnotatedImages(description, folder).stems("train", num)


def test_a_sample_of_absent_images(folder, description):
    (folder / "sample.csv").write_text(f",filestem\n0,{UNLABELED[0]}\n1,absent\n2,{TRAIN[0]}\n")
    with pytest.raises(InputError, match=rf"lists {TRAIN[0]}, .*\(2 like it\)"):
        AnnotatedImages(description, folder).unlabeled_stems(2, True, 0)


@pytest.mark.parametrize("batch_size", [4, 5, 2])
def test_half_of_every_batch_is_labeled(batch_size):
    sampler = HalfAndHalf(3, 20, batch_size)
    batches = list(sampler)
    rest = batch_size - batch_size // 2
    assert len(batches) == len(sampler) == 20 // rest
    assert all(sum(index < 3 for index in batch) == batch_size // 2 for batch in batches)
    pseudo = [index for batch in batches for index in batch if index >= 3]
    assert len(set(pseudo)) == len(pseudo) == 20 // rest * rest and max(pseudo) < 23
    assert {index for batch in batches * 5 for index in batch} >= {0, 1, 2}


def test_a_batch_of_one_image_has_no_place_for_labeled_ones():
    with pytest.raises(InputError, match="--batch_size 1: half of a batch are labeled images; give 2 or more"):
        HalfAndHalf(3, 20, 1)


def test_stored_masks_split_by_sorted_stems(folder, description):
    stems = sorted([*TRAIN, *VAL, *TEST])
    write_masks(folder / "masks.h5", stems[::-1], (2, HEIGHT, WIDTH))
    stored = replace(description, masks=StoredMasks("masks.h5", 3, 1), metadata=None, training_order=None,
                     unlabeled_sample=None, unlabeled="rest_of_train")
    data = AnnotatedImages(stored, folder)
    assert [data.stems(split) for split in ("train", "val", "test")] == [stems[:3], stems[3:4], stems[4:]]
    assert data.unlabeled_stems(1, True, 0) == stems[1:3] and data.has_ground_truth(stems[1])
    assert data.mask(stems[0]).shape == (2, 10, 15)
    assert AnnotatedImages(replace(stored, unlabeled="all_of_train"), folder).unlabeled_stems(1, True, 0) == stems[:3]
    with pytest.raises(InputError, match="no unlabeled images with 3 labeled ones"):
        data.unlabeled_stems(3, True, 0)
    with pytest.raises(InputError, match="holds 5 masks, more than 3 \\+ 2"):
        AnnotatedImages(replace(stored, masks=StoredMasks("masks.h5", 3, 2)), folder)
    (folder / "masks.h5").unlink()
    with pytest.raises(InputError, match=r"masks\.h5: no such masks; make them with `python -m prepare`"):
        AnnotatedImages(stored, folder)


def test_open_dataset_takes_another_input_size_and_needs_the_data(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.csv: no such table"):
        open_dataset("graz", tmp_path)
    with pytest.raises(InputError, match="no data set 'teeth'"):
        open_dataset("teeth", tmp_path)


@pytest.mark.slow
def test_workers_change_no_random_number():
    """Neither in a training that runs through nor in one that goes on after an interruption."""
    data = TensorDataset(torch.arange(10))

    def epochs(workers: int, count: int) -> list[list[int]]:
        """The order of each epoch, and a number that the training draws after it."""
        loader = EpochLoader(data, 2, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        return [[*torch.cat([batch for batch, in loader]).tolist(), torch.randint(1000, ()).item()]
                for _ in range(count)]

    torch.manual_seed(0)
    expected = epochs(0, 4)
    torch.manual_seed(0)
    assert epochs(1, 4) == expected
    torch.manual_seed(0)
    assert epochs(1, 2) + epochs(1, 2) == expected


def test_workers_change_nothing_where_batches_are_drawn_one_by_one(capsys):
    """A training draws numbers of its own after each batch."""
    data = TensorDataset(torch.arange(20))

    def epochs(workers: int) -> list[int]:
        torch.manual_seed(0)
        loader = EpochLoader(data, batch_sampler=HalfAndHalf(5, 15, 4), num_workers=workers)
        return [number for _ in range(2) for batch, in loader for number in (*batch.tolist(), torch.rand(()).item())]

    torch.manual_seed(0)
    plain = DataLoader(data, batch_sampler=HalfAndHalf(5, 15, 4))
    expected = [number for _ in range(2) for batch, in plain for number in (*batch.tolist(), torch.rand(()).item())]
    assert epochs(0) == epochs(1) == epochs(2) == expected
    assert "--num_workers" in capsys.readouterr().out
