"""Grey values of radiographs: which of a file's values are black and white, so that networks see all of an image."""
from dataclasses import dataclass

import numpy as np

from utils.errors import say_once

RANGES = ("stored", "bits", "percentiles")
RARE = 1e-3  # share of an image's pixels that may be cut off unsaid
MARKS = 0.2  # share of them that may be burnt in with one value
OUTER = 0.5  # percent of the pixels that "percentiles" leaves to black and to white each
BITS = (8, 10, 12, 14)  # that images in files of 16 may have


@dataclass(frozen=True)
class GreyValues:
    """How the values in image files are meant.

    Attributes:
        max_value: white in files of 16 bits; an image that would lose more than `RARE` of its pixels to it is read with
            its own bits, and named. None: not stated
        range: "stored": as they are. "bits": an image of 16 bits that uses 8, 10, 12 or 14 of them has so many.
            "percentiles": from `OUTER` percent of the image's pixels to all but as many
        inverted: white stands for black in these files
    """

    max_value: int | None = None
    range: str = "stored"
    inverted: bool = False

    @property
    def name(self) -> str:
        """Sets what was computed of these values apart; "" for those of the files."""
        of_range = {"stored": "_stored" if self.max_value else "", "bits": "" if self.max_value else "_bits"}
        return ((f"_max{self.max_value}" if self.max_value else "") + of_range.get(self.range, f"_{self.range}")
                + ("_inverted" if self.inverted else ""))

    def apply(self, grey: np.ndarray, what: object = "image", negative: bool = False,
              stated: int | None = None) -> np.ndarray:
        """An image of a file with black at 0 and white at the largest number of its type.

        Args:
            grey: uint8 or uint16, (H, W), as stored
            what: the file, for messages
            negative: whether the file itself says that 0 is white
            stated: the largest value by the file's own account
        Returns:
            the same type and shape
        """
        low, high = self._limits(grey, what, stated)
        largest = np.iinfo(grey.dtype).max
        if (low, high) != (0, largest):
            above = (np.clip(grey, low, high) - np.array(low, grey.dtype)).astype(np.uint32)
            grey = (above * largest // (high - low)).astype(grey.dtype)
        return largest - grey if self.inverted != negative else grey

    def _limits(self, grey: np.ndarray, what: object, stated: int | None) -> tuple[int, int]:
        largest = int(np.iinfo(grey.dtype).max)
        if self.range == "percentiles":
            return _percentiles(grey)
        if largest == 255:
            return 0, largest
        if self.range == "stored":
            return 0, self.max_value or largest
        if self.max_value is None:
            return 0, stated if stated and np.mean(grey > stated) <= RARE else find_maximum(grey)
        used = find_maximum(grey)
        if used <= self.max_value or (share := np.mean(grey > self.max_value)) <= RARE:
            return 0, self.max_value
        say_once(f"{what}: {100 * share:.1f} % of its pixels are above max_grey_value = {self.max_value}; it is read "
                 f"with {used} as white", kind="clipped")
        return 0, used


STORED = GreyValues()


def find_maximum(grey: np.ndarray) -> int:
    """The largest number of as few bits (8, 10, 12, 14 or 16) as hold an image, uint16, (H, W).

    `RARE` of its pixels, and those of the most frequent value beyond if they aren't more than `MARKS`, may lie above:
    what was burnt in.
    """
    counts = np.bincount(grey.ravel(), minlength=1 << 16)
    for bits in BITS:
        above = counts[1 << bits:]
        if above.sum() - min(above.max(), MARKS * grey.size) <= RARE * grey.size:
            return (1 << bits) - 1
    return (1 << 16) - 1


def _percentiles(grey: np.ndarray) -> tuple[int, int]:
    inside = grey if grey.dtype == np.uint8 else grey[grey <= find_maximum(grey)]
    low, high = np.percentile(inside, (OUTER, 100 - OUTER), method="nearest")
    return (int(low), int(high)) if low < high else (0, int(np.iinfo(grey.dtype).max))
