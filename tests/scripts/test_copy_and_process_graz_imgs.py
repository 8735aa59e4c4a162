import cv2
import numpy as np
import pytest

from scripts.copy_and_process_graz_imgs import get_args_parser, main, to_8_bit
from utils import left_out
from utils.cli import run_stage
from utils.errors import InputError
from utils.files import read_grey, write_png

ROWS = "filestem,patient_id,laterality,projection\na_L,1,L,1\nb_R,1,R,1\nc_L,2,L,2\nd_R,2,R,3\n"


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for stem, dtype, folder in (("a_L", np.uint16, "part1"), ("b_R", np.uint8, "part2/x"), ("c_L", np.uint16, ".")):
        image = rng.integers(0, np.iinfo(dtype).max, (40, 24)).astype(dtype)
        write_png(tmp_path / "source" / folder / f"{stem}.png", image)
    (tmp_path / "data" / "graz").mkdir(parents=True)
    (tmp_path / "data" / "graz" / "dataset.csv").write_text("\ufeff" + ROWS, encoding="utf-8")
    return tmp_path / "source"


def run(source, *more: str):
    arguments = ["--source", str(source), "--data_dir", str(source.parent / "data"), *more]
    main(get_args_parser().parse_args(arguments))
    return source.parent / "data" / "graz" / "img_only_front_all_left"


def test_frontal_images_are_written_and_right_hands_mirrored(source):
    target = run(source)
    assert sorted(path.name for path in target.iterdir()) == ["a_L.png", "b_R.png"]
    np.testing.assert_array_equal(read_grey(target / "a_L.png"), to_8_bit(read_grey(source / "part1/a_L.png")))
    np.testing.assert_array_equal(read_grey(target / "b_R.png"), read_grey(source / "part2/x/b_R.png")[:, ::-1])


@pytest.mark.parametrize(("cell", "mirrored"), [("r,1", True), (" R , 1.0", True), ("l,1", False)])
def test_cells_of_the_table_are_compared_as_they_are_meant(source, cell, mirrored):
    table = source.parent / "data" / "graz" / "dataset.csv"
    table.write_text(ROWS.replace("b_R,1,R,1", f"b_R,1,{cell}"))
    (source / "part2/x/b_R.png").rename(source / "part2/x/b_R.PNG")
    stored = read_grey(source / "part2/x/b_R.PNG")
    np.testing.assert_array_equal(read_grey(run(source) / "b_R.png"), stored[:, ::-1] if mirrored else stored)


@pytest.mark.parametrize(("cell", "message"), [
    (",1", r"dataset\.csv: row 3 \(b_R\) has nothing in the column 'laterality'; fill it in"),
    ("R,", "has nothing in the column 'projection'"), ("right,1", "has 'right' in the column 'laterality'")])
def test_a_cell_that_decides_nothing_is_an_error(source, cell, message):
    table = source.parent / "data" / "graz" / "dataset.csv"
    table.write_text(ROWS.replace("b_R,1,R,1", f"b_R,1,{cell}"))
    with pytest.raises(InputError, match=message):
        run(source)
    table.write_text(ROWS.replace("d_R,2,R,3", "d_R,2,,"))  # an image that isn't there
    assert len(list(run(source).iterdir())) == 2


def test_16_bit_images_are_scaled_and_equalized():
    image = np.random.default_rng(1).integers(0, 65536, (32, 48)).astype(np.uint16)
    expected = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply((image / 256).astype(np.uint8))
    np.testing.assert_array_equal(to_8_bit(image), expected)


def test_a_rerun_leaves_what_is_there(source, capsys):
    target = run(source)
    made = (target / "a_L.png").stat().st_mtime_ns
    (target / "b_R.png").unlink()
    run(source)
    assert (target / "a_L.png").stat().st_mtime_ns == made and (target / "b_R.png").exists()
    assert "3 images, 2 frontal: 1 written" in capsys.readouterr().out


def test_a_mended_table_and_a_replaced_image_are_followed(source, capsys):
    target, table = run(source), source.parent / "data" / "graz" / "dataset.csv"
    table.write_text(ROWS.replace("b_R,1,R,1", "b_R,1,L,1"))
    run(source)
    assert "1 written" in capsys.readouterr().out.splitlines()[-1]
    np.testing.assert_array_equal(read_grey(target / "b_R.png"), read_grey(source / "part2/x/b_R.png"))
    write_png(source / "part1/a_L.png", read_grey(source / "part1/a_L.png")[::-1].copy())
    write_png(target / "b_R.png", np.zeros((3, 3), np.uint8))  # not what this stage wrote
    run(source)
    assert "2 written" in capsys.readouterr().out.splitlines()[-1]
    np.testing.assert_array_equal(read_grey(target / "a_L.png"), to_8_bit(read_grey(source / "part1/a_L.png")))
    np.testing.assert_array_equal(read_grey(target / "b_R.png"), read_grey(source / "part2/x/b_R.png"))


def test_an_unreadable_image_is_named_and_the_others_are_done(source, monkeypatch, capsys):
    monkeypatch.setattr(left_out, "_left_out", {})
    path = source / "part1" / "a_L.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit) as stop:
        run_stage(main, get_args_parser(), ["--source", str(source), "--data_dir", str(source.parent / "data")])
    folder = source.parent / "data" / "graz"
    assert stop.value.code == 3 and str(folder / "left_out.csv") in capsys.readouterr().err.splitlines()[-1]
    assert "a_L.png: not a readable image" in (folder / "left_out.csv").read_text()
    assert [path.name for path in (folder / "img_only_front_all_left").iterdir()] == ["b_R.png"]



def test_bad_input_ends_with_code_2(source, capsys):
    parser = get_args_parser()
    data_dir = ["--data_dir", str(source.parent / "data")]
    (source.parent / "empty").mkdir()
    for arguments, message in (
            (["--source", str(source / "nowhere"), *data_dir], "no such folder"),
            (["--source", str(source.parent / "empty"), *data_dir], "no PNG image"),
            (["--source", str(source), *data_dir, "--dataset_csv", str(source / "no.csv")], "no such table"),
            (data_dir, "graz/images: no such folder")):
        with pytest.raises(SystemExit) as caught:
            run_stage(main, parser, arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and error.count("\n") == 1


def test_nothing_frontal_and_an_image_in_two_folders(source):
    table = source.parent / "data" / "graz" / "dataset.csv"
    table.write_text(ROWS.replace(",1\n", ",2\n"))
    with pytest.raises(InputError, match="none of the 3 images as frontal"):
        run(source)
    write_png(source / "again" / "a_L.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="the same image is in"):
        run(source)


@pytest.mark.shared
def test_real_images_come_out_as_the_paper_used_them(shared, tmp_path):
    graz = shared / "data" / "graz"
    main(get_args_parser().parse_args(["--source", str(graz / "images_16bit"), "--data_dir", str(tmp_path),
                                       "--dataset_csv", str(graz / "dataset.csv")]))
    made = {path.name: path for path in (tmp_path / "graz" / "img_only_front_all_left").iterdir()}
    assert len(made) == 4 and "3001_0467767722_01_WRI-L2_F005.png" not in made
    name = "0001_1297860395_01_WRI-L1_M014.png"
    ours, theirs = read_grey(made[name]), read_grey(graz / "images_8bit" / name)
    assert ours.dtype == np.uint8
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] >= 0.998
