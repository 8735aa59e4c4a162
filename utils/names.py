"""Names that people typed: compared as they are meant, and told."""
import re
import unicodedata
from collections.abc import Collection, Iterable
from difflib import get_close_matches

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pgm")  # beside DICOM's
IMAGE_SUFFIXES = (*READ_SUFFIXES, ".dcm", ".dicom", ".img", ".npy", ".nii", ".mha")
VOLUME_SUFFIXES = (".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npz")  # also of arrays


def plain(text: str | None) -> str:
    """A name however it is encoded or spaced: one Unicode form (NFC), no space around it, one between words."""
    return unicodedata.normalize("NFC", " ".join((text or "").split()))


def plain_stem(text: str | None) -> str:
    """The stem of an image that a table may name by its file."""
    name = plain(text)
    start, dot, suffix = name.rpartition(".")
    return start if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def same_value(cell: str, value: str) -> bool:
    """Whether two cells of tables mean the same: whatever their case and spaces, numbers as numbers."""
    if plain(cell).casefold() == plain(value).casefold():
        return True
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def suggest(name: str, known: Collection[str]) -> str:
    """" (x?)" with the known name that is probably meant; "" if none is alike."""
    def reduce(text: str) -> str:
        return re.sub(r"[\s_-]+", "", text).casefold()

    reduced = {reduce(each): each for each in known}
    close = get_close_matches(reduce(name), reduced, 1, cutoff=0.8)
    return f" ({reduced[close[0]]}?)" if close else ""


def name_some(names: Iterable[object], most: int = 3) -> str:
    """The first of many names in a sentence: "a, b, c and 4 more"."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
