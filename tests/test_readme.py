"""What README.md and docs/ say against the project: commands, their arguments, links."""
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", ROOT / "benchmarks" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "docs" / "results").glob("*.sh"))
OWN = ("scripts.", "unet_training.", "benchmarks.")
COMMAND = re.compile(r"^(?:\$ )?python -m ([\w.]+)(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every command that has a line of its own."""
    return [(module, shlex.split(rest, comments=True)) for module, rest in COMMAND.findall(read(path))]


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_that_is_named_exists(path):
    assert not [name for name in re.findall(r"python -m ([\w.]*\w)", read(path)) if find_spec(name) is None]


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_arguments_that_are_given(path):
    for module, arguments in commands(path):
        if module.startswith(OWN):
            import_module(module).get_args_parser().parse_args(arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target, anchor in LINK.findall(read(path)):
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_scripts_of_the_results_are_executable():
    assert SCRIPTS and all(path.stat().st_mode & 0o100 for path in SCRIPTS)


def test_every_target_of_the_makefile_is_in_its_help():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
    assert {"demo", "test", "test-fast", "stress", "help"} == set(targets)
    assert all(re.search(rf"^{target}:.*## \S", text, re.MULTILINE) for target in targets)
