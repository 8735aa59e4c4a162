"""Builds one wheel whose only top-level package is `sam_burden`: the packages of this repository, below that name.

By their own names they would hide the installed `segment-anything`, and everybody's `utils` and `scripts`. An editable
install renames what it imports in the same way; python -m scripts.run_pipeline and the like need no install.
"""
import ast
import re
import shutil
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("utils", "segment_anything", "unet_training", "scripts")
BESIDE = ("annotations_train.xml", "annotations_test.xml")  # which the phantoms are drawn by
TESTS = "# for the tests alone"  # in requirements.txt; what follows isn't installed
OURS = re.compile(rf"""((?:from|import|-m) |["'`])({"|".join(PACKAGES)})(\.\w+|(?= import ))""")
INIT = '''"""Semi-supervised segmentation of radiographs: a U-Net, and SAM that refines its masks.

    from sam_burden import load_model, load_sam, refine
"""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_burden.unet_training.arrays import RefinementOptions, load_model, load_sam, refine

__all__ = ["RefinementOptions", "load_model", "load_sam", "refine"]


def __getattr__(name: str) -> object:
    """Imports torch, which takes seconds, when somebody asks for what needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("sam_burden.unet_training.arrays"), name)
'''
EDITABLE = f'''
import sys
from importlib.util import module_from_spec, spec_from_file_location

_spec = spec_from_file_location("sam_burden_setup", {str(ROOT / "setup.py")!r})
_spec.loader.exec_module(_setup := module_from_spec(_spec))
sys.meta_path.insert(0, _setup.Finder)
'''


def rename(source: str) -> str:
    """A module's source as it is below `sam_burden`: in imports, and in strings that begin with the name of one of our
    modules, or name it after -m. `segment_anything.modeling` and the like stay those of the installed package."""
    def below(match: re.Match) -> str:
        start, package, inner = match.groups()
        place = ROOT / package / inner[1:]
        ours = not inner or place.is_dir() or place.with_suffix(".py").is_file()
        return f"{start}sam_burden.{package}{inner}" if ours else match[0]

    lines = source.splitlines(keepends=True)
    named = (ast.Import, ast.ImportFrom, ast.Constant, ast.JoinedStr)
    for number in {number for node in ast.walk(ast.parse(source)) if isinstance(node, named)
                   for number in range(node.lineno - 1, node.end_lineno)}:
        lines[number] = OURS.sub(below, lines[number])
    return "".join(lines)


class Loader(SourceFileLoader):
    """Renames what an editable install imports. Keeps no bytecode: beside the file lies that of its own name."""

    def get_code(self, fullname):
        return self.source_to_code(rename(self.get_source(fullname)), self.path)


class Finder:
    """Finds in the repository what an editable install imports."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        top, *inner = name.split(".")
        if top != "sam_burden" or not inner or inner[0] not in PACKAGES:
            return None
        place = ROOT.joinpath(*inner)
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        return spec_from_file_location(name, file, loader=Loader(name, str(file))) if file.is_file() else None


def main() -> None:
    from setuptools import setup  # here, since an editable install reads this file without it
    from setuptools.command.build_py import build_py

    files = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.*"))
             if path.is_file() and path.parent.name != "__pycache__"] + [Path(name) for name in BESIDE]
    editable = Path("build", "editable", "sam_burden")

    class Build(build_py):
        def run(self):
            target = editable if self.editable_mode else Path(self.build_lib, "sam_burden")
            shutil.rmtree(target, ignore_errors=True)
            for file in [] if self.editable_mode else files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".py":
                    (target / file).write_text(rename(file.read_text(encoding="utf-8")), encoding="utf-8")
                else:
                    shutil.copyfile(file, target / file)
            target.mkdir(parents=True, exist_ok=True)
            (target / "__init__.py").write_text(INIT + (EDITABLE if self.editable_mode else ""), encoding="utf-8")
            (target / "py.typed").touch()

        def get_source_files(self):
            return ["requirements.txt", *map(str, files)]

        def get_outputs(self, include_bytecode=True):
            return [str(Path(self.build_lib, "sam_burden", file)) for file in (*files, "__init__.py", "py.typed")]

        def get_output_mapping(self):
            return {}

    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition(TESTS)[0].splitlines()
    setup(packages=["sam_burden"], package_dir={"sam_burden": str(editable)}, cmdclass={"build_py": Build},
          install_requires=[line for line in needed if line and not line.startswith("#")])


if __name__ == "__main__":
    main()
