"""Masks in image files: label maps, whose values or colors tell the label, and files of one label each."""
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from utils.errors import InputError
from utils.files import open_image, read_orientation
from utils.names import name_some, plain, suggest

LOSSLESS = (".png", ".tif", ".gif", ".bmp")
LOSSY = (".jpg", ".jp2", ".webp")
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP")
FEW_BITS = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # for EXIF's orientations
MOST_OF_AN_IMAGE = 0.5
WHITE = 255
BACKGROUND = "background"
Color = tuple[int, int, int]


class Pixels:
    """The pixels of a mask's file, turned as its header says.

    Attributes:
        shown: (H, W, 3): red, green and blue; of 16 bits all alike
        has_grey_palette: whether they are equal everywhere, and there is a palette
        stored: (H, W): the values of the one channel, or of three equal ones, and the indices where there is a
            palette; None where the channels differ
    """

    def __init__(self, path: Path):
        """Raises InputError if it isn't a readable image of whole numbers, one frame, and a lossless format."""
        with open_image(path) as image:
            check_lossless(path, image)
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: holds {image.n_frames} images; save each one in a file of its own")
            mode = image.tile[0].args if image.tile else ""
            mode = mode[0] if isinstance(mode, tuple) else mode
            if image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                upright = _read_turned_tiff(path)  # Pillow mixes up the rows of those that lie
            else:
                image.load()
                turn = TURNS.get(1 if image.format == "TIFF" else read_orientation(path, image))
                upright = image if turn is None else image.transpose(turn)
            values = np.asarray(upright)
        if "A" in upright.getbands():
            upright = _fill_transparent(path, upright)
            values = np.asarray(upright)
        whole = upright.mode in ("1", "L", "P", "RGB") or upright.mode.startswith("I")
        if upright.mode == "F" and (values == np.floor(values)).all():
            whole = True
        if not whole or (upright.mode == "RGB" and ";16" in str(mode)):
            raise InputError(f"{path}: a mask has whole numbers of 8 or 16 bits in one channel, or colors of 8 bits; "
                             "save it so, losslessly")
        if upright.mode in ("1", "F"):
            values = values.astype(np.int32)
        values = values // np.array(FEW_BITS.get(mode, 1), values.dtype)
        colored = upright.mode in ("P", "RGB")
        self.shown = (np.asarray(upright.convert("RGB")) if colored else
                      np.broadcast_to(values[..., None], (*values.shape, 3)))
        grey = colored and bool((self.shown == self.shown[..., :1]).all())
        self.has_grey_palette = grey and upright.mode == "P"
        self.stored = values if values.ndim == 2 else values[..., 0] if grey else None


def _fill_transparent(path: Path, image: Image.Image) -> Image.Image:
    """A mask without its transparency: what is drawn on nothing has nothing around it."""
    alpha, image = np.asarray(image.getchannel("A")), image.convert(image.mode.rstrip("Aa"))
    hidden, pixels = alpha == 0, np.array(image)
    if not (alpha < WHITE).any():
        return image
    around = np.unique(pixels[hidden].reshape(np.count_nonzero(hidden), -1), axis=0)
    pixels[hidden] = 0
    if image.mode not in ("L", "RGB") or (alpha[~hidden] < WHITE).any() or len(around) > 1 or (
            not pixels.any() and not hidden.all()):
        raise InputError(f"{path}: is transparent in places, where it tells no label; save it without transparency")
    return Image.fromarray(pixels)


def _read_turned_tiff(path: Path) -> Image.Image:
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise InputError(f"{path}: not a readable image; replace the file")
    return Image.fromarray(values if values.ndim == 2 else np.ascontiguousarray(values[..., 2::-1]))


def check_lossless(path: Path, image: Image.Image) -> None:
    """Raises an InputError where the format of an open image keeps values only roughly, whatever its name says."""
    if image.format in LOSSY_FORMATS:
        raise InputError(f"{path}: is a {image.format} file, which keeps values only roughly, so that there would be "
                         "labels where none was drawn; export this mask as PNG from where it was drawn")


def read_label_map(path: Path, labels: Sequence[str], values: Mapping[str, int], ignore: Collection[int] = (),
                   colors: Mapping[str, Color] | None = None) -> np.ndarray:
    """The masks of one label map.

    Args:
        labels: in channel order
        values: label -> its value; where there are none, the v-th label has the value v
        ignore: values that belong to no label, as 0 does
        colors: label -> red, green and blue; counts instead of values where it is given. Black is background
    Returns:
        bool, (C, H, W)
    Raises:
        InputError: the file isn't a readable label map, or holds something that no label has.
    """
    pixels = Pixels(path)
    if colors is not None:
        return _by_color(path, pixels, labels, colors)
    if pixels.stored is None:
        raise InputError(f"{path}: is in color; say which color each label has, in [masks] of the description: `colors "
                         f'= {{ "{labels[0]}" = [255, 0, 0] }}` with all labels, or CVAT\'s table, `colors = '
                         '"labelmap.txt"`')
    value_of = {label: values.get(label) for label in labels} if values else dict(zip(labels, range(1, len(labels) + 1),
                                                                                      strict=True))
    known = {0, *value_of.values(), *ignore}
    stored, found = pixels.stored, set(find_values(pixels.stored))
    if pixels.has_grey_palette and known.issuperset(shown := find_values(pixels.shown[..., 0])):
        stored, found = pixels.shown[..., 0], set(shown)  # the indices of a GIF are those of the tool that wrote it
    if found <= {0, WHITE} and len(labels) == 1 and not values and WHITE not in ignore:
        value_of = {labels[0]: WHITE}
    elif odd := sorted(found - known):
        raise InputError(f"{path}: has the value {odd[-1]}, but there are {len(labels)} labels"
                         f"{' with other values' if values else ''}; say which value each label has, in [masks] of the "
                         f'description: `values = {{ "{labels[0]}" = {odd[0]} }}` with all labels, and which belong to '
                         f"none: `ignore = [{odd[-1]}]`")
    return np.stack([stored == value for value in value_of.values()])


def _by_color(path: Path, pixels: Pixels, labels: Sequence[str], colors: Mapping[str, Color]) -> np.ndarray:
    codes = _encode(pixels.shown)
    code_of = {label: int(_encode(np.array(color))) for label, color in colors.items()}
    numbers, counts = np.unique(codes, return_counts=True)
    odd = [(int(code), int(count)) for code, count in zip(numbers, counts, strict=True)
           if code and code not in code_of.values()]
    if odd:
        code, count = max(odd, key=lambda pair: pair[1])
        raise InputError(f"{path}: {count} pixels have the color {[code >> 16, code >> 8 & 255, code & 255]}, which no "
                         f"label has ({len(odd)} such colors); add it to the table of colors, with the name "
                         f"{BACKGROUND!r} if it means that")
    return np.stack([codes == code_of[label] for label in labels])


def find_values(values: np.ndarray) -> list[int]:
    """All values of an array of whole numbers, sorted."""
    if values.dtype == np.uint8:
        histogram = cv2.calcHist([np.ascontiguousarray(values)], [0], None, [256], [0, 256])  # sorts nothing
        return np.flatnonzero(histogram).tolist()
    return np.unique(values).tolist()


def _encode(colors: np.ndarray) -> np.ndarray:
    colors = colors.astype(np.int32)
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def read_colors(path: Path) -> dict[str, Color]:
    """Label -> color of a table in CVAT's format, `name:red,green,blue:parts:actions` in each line; # begins a comment.

    Raises:
        InputError: the file is missing or has another line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table of colors; CVAT exports one with 'Segmentation mask 1.1'")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as UTF-8 ({error}); save it so") from None
    colors = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(.*?)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line)
        color = tuple(map(int, match.groups()[1:4])) if match else (256,)
        if max(color) > WHITE or not match[1]:
            raise InputError(f"{path}: line {number} is {line!r}, not a label and its color as in `heart:255,0,0::`; "
                             "correct it")
        colors[plain(match[1])] = color
    return colors


def check_table(what: str, labels: Sequence[str], named: Collection[str], exactly: bool = True) -> None:
    """Raises an InputError where a table lacks one of the labels, or (with `exactly`) names what isn't one."""
    for label in labels:
        if label not in named:
            raise InputError(f"{what}: lacks the label {label!r}{suggest(label, named)}; add it")
    if exactly and (odd := sorted(set(named) - set(labels))):
        raise InputError(f"{what}: names {odd[0]!r}, which is no label of the description{suggest(odd[0], labels)}; "
                         "correct it")


def read_binary(path: Path) -> np.ndarray:
    """The mask in a file of one label, bool, (H, W): everything that isn't black.

    Raises:
        InputError: it isn't a readable image, or has more values than two.
    """
    shown = Pixels(path).shown
    values = np.unique(_encode(shown)) if shown.max() <= WHITE else np.unique(shown[..., 0])
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise InputError(f"{path}: has {len(values)} grey values, where a mask of one label has 0 and one other; save "
                         "it without smooth edges, with 0 as background")
    return shown.any(axis=-1)


def check_shares(path: Path, masks: np.ndarray, labels: Sequence[str], large: Collection[str]) -> None:
    """Raises an InputError where a label that isn't one of `large` covers most of an image (masks: bool, (C, H, W))."""
    for label, mask in zip(labels, masks, strict=True):
        share = np.count_nonzero(mask) / mask.size
        if share > MOST_OF_AN_IMAGE and label not in large:
            raise InputError(f"{path}: {label} covers {100 * share:.0f} % of the image, as if its background were "
                             f"taken for it; where that is right, write `large_labels = [\"{label}\"]` into [masks] of "
                             "the description, else say there which `values` or `colors` labels have")


def find_lossy(paths: Mapping[str, list[str]], masks: Collection[str]) -> str:
    """The name of a left-out file of a lossy format that is the only mask of its image; "" if there is none."""
    names = [name for names in paths.values() for name in names if Path(name).suffix.lower() in (*LOSSY, ".jpeg")]
    return name_some([name for name in names if plain(Path(name).stem) not in masks])
