"""The recipe of docs/extending.md for a source of annotations, followed to the letter in a copy of the project."""
import re
import shutil
import subprocess
import sys

import numpy as np

from tests.conftest import OWN_DESCRIPTION, ROOT
from utils.files import write_png


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of code below a heading."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}$(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def test_a_source_of_annotations_is_added_in_one_file(tmp_path):
    for package in ("scripts", "unet_training", "segment_anything", "utils"):
        shutil.copytree(ROOT / package, tmp_path / package)
    code, = blocks("A source of annotations", "python")
    with (tmp_path / "utils" / "datasets" / "sources.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{code}")
    masks, = blocks("A source of annotations", "toml")
    folder = tmp_path / "data" / "mine"
    (folder / "masks").mkdir(parents=True)
    (folder / "description.toml").write_text(OWN_DESCRIPTION.partition("[masks]")[0] + masks)
    rng = np.random.default_rng(0)
    shown = rng.random((52, 2, 36, 60)) < 0.25  # 40 for training, 10 for validation, 2 for testing
    for number, mask in enumerate(shown):
        write_png(folder / "img" / f"{number:02}.png", rng.integers(0, 256, (36, 60), np.uint8))
        np.save(folder / "masks" / f"{number:02}.npy", mask)
    printed = subprocess.run([sys.executable, "-m", "scripts.measure_dataset", "--dataset", "mine"], cwd=tmp_path,
                             check=True, capture_output=True, text=True).stdout
    measured = map(float, re.search(r"pos_weight = \[(.*)\]", printed)[1].split(","))
    shares = shown[:40].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(list(measured), (1 - shares) / shares, rtol=1e-4)
