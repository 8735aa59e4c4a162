"""What `pip install .` and `pip install -e .` put where: built without a network, used in fresh processes elsewhere."""
import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_house import FLOORS, files_of_the_project, imported_packages, modules, syntax_tree

USE = """
import site, sys
site.addsitedir(sys.argv[1])
import numpy as np
import segment_anything
from sam_burden import load_sam, refine
from sam_burden.utils.errors import InputError
from sam_burden.utils.paths import DATA
masks = np.zeros((2, 30, 60), bool)
masks[0, 5:15, 10:31] = True
refined = refine(masks, np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8), load_sam("demo"))
assert refined.masks.shape == (2, 90, 120) and refined.masks[0].any() and 0 < refined.estimates[0] < 1
assert not {"utils", "scripts", "unet_training"} & sys.modules.keys()
try:
    load_sam("vit_h")
except InputError as error:
    assert "python -m sam_burden.scripts.download_checkpoint vit_h" in str(error)
print(segment_anything.__file__, DATA, sep="\\n")
"""
COMMAND = """
import runpy, site, sys
site.addsitedir(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git tracks, as building writes beside it."""
    folder = tmp_path_factory.mktemp("source")
    for path in files_of_the_project():
        inner = path.relative_to(ROOT)
        if inner.parts[0] in FLOORS or len(inner.parts) == 1:
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inner)
    return folder


def python(folder: Path, *args: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *args], cwd=folder, capture_output=True, text=True, env=environment,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_help(site: Path, elsewhere: Path) -> None:
    shown = python(elsewhere, "-c", COMMAND, str(site), "sam_burden.scripts.make_phantoms", "--help")
    assert shown.startswith("usage: python -m sam_burden.scripts.make_phantoms ")


def test_our_modules_are_imported_from():
    """As `import utils.files` would bind another name once it is renamed."""
    assert not [f"{path}:{node.lineno}" for path in modules(*FLOORS) for node in ast.walk(syntax_tree(path))
                if isinstance(node, ast.Import) and set(FLOORS) & set(imported_packages(node))]


@pytest.mark.slow
def test_the_wheel_holds_one_package(source, tmp_path):
    command = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet", "-w", str(tmp_path)]
    python(source, *command, ".")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site := tmp_path / "site")
    top = sorted(path.name for path in site.iterdir())
    assert top == ["sam_burden", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"]
    inner = {path.relative_to(site / "sam_burden").as_posix() for path in (site / "sam_burden").rglob("*")}
    assert {"py.typed", "segment_anything/demo_sam.safetensors", "annotations_test.xml",
            *(path.relative_to(ROOT).as_posix() for path in files_of_the_project()
              if path.relative_to(ROOT).parts[0] in FLOORS)} <= inner
    renamed = (site / "sam_burden").rglob("*.py")
    own = {*FLOORS} - {"segment_anything"}
    assert not [path for path in renamed for node in ast.walk(syntax_tree(path))
                if own & set(imported_packages(node))]
    metadata = next(site.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    assert "Requires-Dist: torch==" in metadata and "Requires-Dist: pytest" not in metadata
    upstream, data = python(tmp_path, "-c", USE, str(site)).splitlines()
    assert Path(upstream).parts[-3:-1] == ("site-packages", "segment_anything")
    assert Path(data) == tmp_path / "data"
    check_help(site, tmp_path)


@pytest.mark.slow
def test_an_editable_install_is_the_repository(source, tmp_path):
    python(source, "-c", f"from setuptools.build_meta import *; build_editable({str(tmp_path)!r})")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site := tmp_path / "site")
    check_help(site, tmp_path)
    with (source / "utils" / "errors.py").open("a", encoding="utf-8") as file:
        file.write("\nNEW = 17\n")
    command = "import site, sys; site.addsitedir(sys.argv[1]); from sam_burden.utils.errors import NEW; print(NEW)"
    assert python(tmp_path, "-c", command, str(site)) == "17\n"
