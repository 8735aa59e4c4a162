import errno
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageOps

from utils.errors import InputError
from utils.files import (
    atomic_path,
    explain_damage,
    has_16_bits,
    image_size,
    load_tensors,
    read_grey,
    save_tensors,
    write_bytes,
    write_png,
)
from utils.tables import write_rows


def test_nothing_half_written_stays(tmp_path):
    path = tmp_path / "new" / "result.txt"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png_keeps_depth_and_orientation(tmp_path, dtype):
    image = np.arange(5 * 8, dtype=dtype).reshape(5, 8) * 6
    write_png(tmp_path / "image.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
    read = read_grey(tmp_path / "image.png")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
@pytest.mark.parametrize("orientation", range(9))
def test_images_are_turned_as_their_header_says(tmp_path, name, orientation):
    image = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (40, 1)))
    tags = Image.Exif()
    if orientation:
        tags[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / name, exif=tags)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)), int)
    read = read_grey(tmp_path / name)
    assert image_size(tmp_path / name) == read.shape == upright.shape
    assert np.abs(read - upright).max() <= 3  # decoders differ a little in JPEG


def test_colors_are_written_as_rgb(tmp_path):
    write_png(tmp_path / "image.png", np.full((4, 6, 3), (255, 128, 0), np.uint8))
    assert Image.open(tmp_path / "image.png").getpixel((5, 3)) == (255, 128, 0)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nbroken"])
def test_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    with pytest.raises(InputError, match="no such image"):
        read_grey(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png: not a readable image"):
        read_grey(path)


@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
@pytest.mark.parametrize("damage", [b"junkjunkjunk",
                                    b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0"])
def test_damaged_exif_data_are_one_line(tmp_path, name, damage):
    """No header at all, and an orientation that isn't a number; what the message says lets the image through."""
    path = tmp_path / name
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path, exif=b"Exif\0\0" + damage)
    for read in (read_grey, image_size):
        with pytest.raises(InputError, match=rf"{name}: its EXIF data, .* are damaged .*; save the image again"):
            read(path)
    Image.open(path).save(path, exif=b"")
    assert image_size(path) == read_grey(path).shape == (4, 6)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("side", [20_000, 200_000])
def test_more_pixels_than_fit_are_one_line(tmp_path, side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"large\.png: too large .*; save it with fewer pixels"):
        image_size(path)
    with pytest.raises(InputError, match=r"large\.png: not a readable image"):
        read_grey(path)


@pytest.mark.parametrize("suffix", [".tif", ".gif"])
def test_a_stack_is_refused_and_a_preview_is_not_the_image(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 30, 41), np.uint8)
    first, *others = map(Image.fromarray, pixels)
    path = tmp_path / f"image{suffix}"
    first.save(path, save_all=True, append_images=others)
    for read in (read_grey, image_size):
        with pytest.raises(InputError, match=r"image.*: holds 5 images; save each of them as a file of its own"):
            read(path)
    first.save(path)
    assert np.array_equal(read_grey(path), pixels[0])
    if suffix == ".tif":
        first.save(path, save_all=True, append_images=[others[0].resize((10, 7))])
        assert np.array_equal(read_grey(path), pixels[0])
        assert image_size(path) == (30, 41)


def test_other_than_8_or_16_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(InputError, match=r"image\.tif: has grey values of the type float32"):
        read_grey(tmp_path / "image.tif")


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Each text is longer than what is written at once."""
    path = tmp_path / "result.txt"
    texts = [str(number) * 200_000 for number in range(8)]

    def write(text: str) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(text)

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, texts))
        assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_permissions_that_files_have(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "theirs").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_what_the_system_refuses_is_said_by_whatever_writes(tmp_path, monkeypatch):
    """Libraries that write files by themselves have errors of their own, and keep the reason to themselves."""
    for write in (lambda path: write_png(path, np.zeros((4, 6), np.uint8)),
                  lambda path: save_tensors(path, {"weights": torch.zeros(3)}),
                  lambda path: write_rows(path, [["a", "b"]])):
        with pytest.raises(OSError, match=r"Operation not permitted|Permission denied|Read-only"):
            write(Path("/sys/result.png"))
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "result.png")
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_damaged_tensors_are_found(tmp_path):
    path, rng = tmp_path / "state.pt", np.random.default_rng(0)
    save_tensors(path, {"weights": torch.rand(1000)})
    content = path.read_bytes()
    where = content.index(load_tensors(path)["weights"].numpy().tobytes())
    for position in where + rng.integers(0, 4000, 20):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1:])
        with pytest.raises(InputError, match=r"state\.pt: not a state .*; make it again"), \
                explain_damage(path, "not a state", "make it again"):
            load_tensors(path)


def test_tiff_files_in_color_of_16_bits_and_with_the_preview_before_the_image(tmp_path):
    color = np.full((20, 30, 3), 4000, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
    assert has_16_bits(tmp_path / "a.tif") and read_grey(tmp_path / "a.tif").max() == 4000
    tifffile.imwrite(tmp_path / "b.tif", color.astype(np.uint8), photometric="rgb")
    assert not has_16_bits(tmp_path / "b.tif")
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        file.write(color[::4, ::4, 0], photometric="minisblack")
        file.write(color[..., 0], photometric="minisblack")
    with pytest.raises(InputError, match="holds 2 images"):
        read_grey(tmp_path / "c.tif")
