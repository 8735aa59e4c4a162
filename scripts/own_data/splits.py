"""Which annotated images are for training, validation and testing: a patient is in one of them only."""
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.datasets.sources import SPLITS
from utils.errors import InputError
from utils.names import plain, plain_stem
from utils.tables import read_rows

SYNONYMS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
            "test": "test", "testing": "test"}
COLUMN, STEM_COLUMNS = "split", ("stem", "image", "file", "name", "filename", "file_name", "filestem")


def split_named(text: str) -> str | None:
    """The split that a name means, as CVAT's subset or a folder may have; None if it doesn't mean one."""
    words = plain(text).casefold().replace("\\", "/").replace("_", "/").replace("-", "/").replace(".", "/").split("/")
    named = {SYNONYMS[word] for word in words if word in SYNONYMS}
    return named.pop() if len(named) == 1 else None


def read_splits(path: Path) -> dict[str, str]:
    """Stem -> split, of a CSV file with the columns `stem` (or `image`, `file`) and `split`, or of a folder with
    train.txt, val.txt and test.txt, a name a line.

    Raises:
        InputError: there is no such file, or it says no split, or something that means none.
    """
    if path.is_dir():
        pairs = [(plain_stem(Path(line).name), split_named(file.stem)) for file in sorted(path.glob("*.txt"))
                 for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        pairs = [pair for pair in pairs if pair[1]]
    else:
        rows = read_rows(path, [COLUMN])
        column = next((name for name in STEM_COLUMNS if rows and name in rows[0]), None)
        if column is None:
            raise InputError(f"--splits {path}: needs the columns 'stem' and 'split' (train, val, test)")
        pairs = [(plain_stem(row[column]), split_named(row[COLUMN])) for row in rows if plain(row[COLUMN])]
        if odd := [stem for stem, split in pairs if split is None]:
            raise InputError(f"--splits {path}: the split of {odd[0]} is none of {', '.join(SPLITS)}; correct it")
    if not pairs:
        raise InputError(f"--splits {path}: names no image; give a CSV file with the columns 'stem' and 'split', or a "
                         "folder with train.txt, val.txt and test.txt")
    return dict(pairs)


def assign(patient_of: Mapping[str, str], shown: Mapping[str, set[str]], given: Mapping[str, str],
           fractions: Sequence[float], seed: int) -> dict[str, str]:
    """The split of each annotated image.

    Patients that have no split yet are taken in the seed's order: first, for each label from the rarest on, one that
    shows it is for training; then each goes where most are lacking.

    Args:
        patient_of: stem -> patient
        shown: stem -> the labels it shows
        given: stem -> split, of those that have one
        fractions: for training, validation and testing
    Raises:
        InputError: a patient is in two splits, or there are too few patients.
    """
    split_of: dict[str, str] = {}
    for stem, split in given.items():
        if stem in patient_of and split_of.setdefault(patient_of[stem], split) != split:
            raise InputError(f"patient {patient_of[stem]} is in the {split_of[patient_of[stem]]} and the {split} "
                             f"split, with {stem} in the latter; correct the splits (--splits FILE), or "
                             "--patient; where a run before drew them, delete images.csv to have them drawn anew")
    images = Counter(patient_of.values())
    labels_of = {patient: set().union(*(shown[stem] for stem in patient_of if patient_of[stem] == patient))
                 for patient in images}
    free = [patient for patient in sorted(images) if patient not in split_of]
    np.random.default_rng(seed).shuffle(free)
    missing = set(SPLITS) - set(split_of.values())
    if len(free) < len(missing):
        raise InputError(f"{len(images)} patients are annotated, which is too few for training, validation and "
                         f"testing ({', '.join(sorted(missing))} would be empty); annotate images of more patients")
    total = sum(images.values())
    wanted = {split: fraction * total / sum(fractions) for split, fraction in zip(SPLITS, fractions, strict=True)}
    for split in ("val", "test"):
        wanted[split] = max(1, wanted[split])

    def lacking(split: str) -> float:
        return wanted[split] - sum(images[patient] for patient, chosen in split_of.items() if chosen == split)

    rarity = Counter(label for labels in labels_of.values() for label in labels)
    for label, _ in reversed(rarity.most_common()):
        showing = [patient for patient in free if label in labels_of[patient]]
        in_training = any(label in labels_of[patient] for patient, split in split_of.items() if split == "train")
        if showing and not in_training and len(free) > len({"val", "test"} - set(split_of.values())):
            split_of[showing[0]] = "train"
            free.remove(showing[0])
    for number, patient in enumerate(free):
        empty = [split for split in SPLITS if split not in split_of.values()]
        choice = empty if len(free) - number <= len(empty) else SPLITS
        split_of[patient] = max(choice, key=lacking)
    return {stem: split_of[patient] for stem, patient in patient_of.items()}
