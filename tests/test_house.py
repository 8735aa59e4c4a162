"""How the project is built: which way imports run, who takes a bag of arguments, what the README's tree says, and that
nothing depends on one machine."""
import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = ("utils", "segment_anything", "unet_training", "scripts")  # from the ground up
NOWHERE = ("benchmarks", "tests")  # which may import everything, and which nothing may import
TEXTS = (".md", ".py", ".toml", ".sh", ".txt", ".yml")
PACKAGES = (*FLOORS, "benchmarks")
UNPACKING = ("main", "from_args", "options_from_args", "options_from", "get_args_parser")
TREE_LINE = re.compile(r"(?P<indent> *)(?P<name>[\w./]+)  +(?P<description>\S.*)")


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_packages(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.split(".")[0]]
    return []


def climbing_imports(path: Path) -> list[str]:
    """Imports of a floor above the file's own, also those inside functions."""
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = {*FLOORS[floor + 1:], *NOWHERE}
    return [f"{path.relative_to(ROOT)}:{node.lineno} imports {package}"
            for node in ast.walk(syntax_tree(path)) for package in imported_packages(node) if package in above]


def annotation_of(parameter: ast.arg) -> str:
    return ast.unparse(parameter.annotation) if parameter.annotation else ""


def takes_namespace(function: ast.AST) -> bool:
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(parameter.arg == "args" or annotation_of(parameter).endswith("Namespace") for parameter in parameters)


def unpacks(name: str) -> bool:
    """Whether a function of this name makes a parser, or typed objects from its arguments."""
    return name in UNPACKING or (name.startswith("add_") and name.endswith("_arguments"))


def tree_of_the_readme() -> dict[str, str]:
    """Path -> description, from the indented lines of README.md's tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<summary>The tree.*?```\n(.*?)```", text, re.DOTALL)[1]
    lines, folders = {}, []
    for line in filter(TREE_LINE.fullmatch, block.splitlines()):
        match = TREE_LINE.fullmatch(line)
        del folders[len(match["indent"]) // 2:]
        lines["".join(folders) + match["name"]] = match["description"]
        if match["name"].endswith("/"):
            folders.append(match["name"])
    return lines


def name_in_tree(path: Path) -> str | None:
    """How the tree names a folder or a module; None for what it leaves out."""
    name = str(path.relative_to(ROOT))
    if path.is_dir():
        return None if path.name == "__pycache__" else f"{name}/"
    return name if path.suffix == ".py" and path.name != "__init__.py" else None


def files_of_the_project() -> list[Path]:
    """What git tracks, or would if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    return [ROOT / name for name in filter(None, listed.stdout.split("\0")) if (ROOT / name).is_file()]


def test_imports_run_downward():
    assert not [line for path in modules(*FLOORS) for line in climbing_imports(path)]


def test_only_main_and_constructors_take_a_namespace():
    takers = [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}" for path in modules(*PACKAGES)
              for node in ast.walk(syntax_tree(path)) if takes_namespace(node) and not unpacks(node.name)]
    assert not takers


def test_the_readmes_tree_is_that_of_the_disk():
    on_disk = {name for package in PACKAGES for path in (ROOT / package, *(ROOT / package).rglob("*"))
               if (name := name_in_tree(path))}
    listed = {name for name in tree_of_the_readme() if name.split("/")[0] in PACKAGES}
    assert (sorted(on_disk - listed), sorted(listed - on_disk)) == ([], [])  # not in the README, not on the disk


def test_everything_has_one_purpose():
    assert not [f"{path}: {text}" for path, text in tree_of_the_readme().items() if re.search(r"\band\b", text)]


def test_no_file_names_a_path_of_this_machine():
    folders = [str(folder) + "/" for folder in (ROOT.parent, Path.home()) if len(folder.parts) > 1]
    assert not [f"{path.relative_to(ROOT)} names {folder}" for path in files_of_the_project()
                for folder in folders if folder.encode() in path.read_bytes()]


def test_code_names_no_text_from_outside_the_project():
    files = files_of_the_project()
    own = {path.name for path in files if path.suffix == ".md"}
    assert not [f"{path.relative_to(ROOT)} names {name}" for path in files if path.suffix == ".py"
                for name in re.findall(r"\w+\.md\b", path.read_text(encoding="utf-8")) if name not in own]


def test_no_file_holds_what_a_merge_left():
    marks = ("<" * 7, ">" * 7)
    assert not [str(path.relative_to(ROOT)) for path in files_of_the_project() if path.suffix in TEXTS
                for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(marks)]
