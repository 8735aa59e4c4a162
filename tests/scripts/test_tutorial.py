"""docs/tutorial.md: its commands run one after the other, print what it says, and correcting the worst masks gains."""
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from utils.datasets.annotated import open_dataset

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"(?:<!-- test: (?P<smaller>[^\n]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
MODEL_ID = re.compile(r"model id: (offline-\w+)")


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command in a block, and what it printed."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield shlex.split(command), output


def run(words: list[str], smaller: list[str]) -> Any:
    """A command in this process; returns what its `main` returns."""
    assert words[0] == "python"
    if words[1].endswith(".py"):
        sys.argv = words[1:]
        return runpy.run_path(words[1])
    stage = import_module(words[2])
    parser = stage.get_args_parser()
    return stage.main(parser.parse_args([*words[3:], *smaller, "--data_dir", "data"]))


def shape(text: str) -> set[str]:
    """The lines without their numbers, ids and spaces."""
    return {" ".join(re.sub(r"offline-\w+|[\d.,]+", "#", line).split()) for line in text.splitlines()} - {""}


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_and_corrections_gain(phantom_data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_BURDEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "argv", [])
    shutil.copytree(phantom_data_dir, "data")  # as its first command draws them
    page, ids = PAGE.read_text(encoding="utf-8").replace("medsam_lite", "demo"), {}
    dice = []  # of the final networks, on the same test images
    told_ids = iter(MODEL_ID.findall(page))
    for block in BLOCK.finditer(page):
        if block["kind"] == "python":
            Path("sample.py").write_text(block["text"])
        for words, told in commands(block["text"]) if block["kind"] == "console" else ():
            if words[2:] == ["scripts.make_phantoms", "--num_unlabeled", "12"]:
                continue
            smaller = shlex.split(block["smaller"] or "")
            capsys.readouterr()
            for told_id, made in ids.items():
                words = [word.replace(told_id, made) for word in words]
            returned = run(words, smaller)
            if words[1:3] == ["-m", "scripts.run_pipeline"]:
                dice += [summary.mean for what, split, summary in returned if (what, split) == ("final", "test")]
            said = capsys.readouterr().out
            ids |= {told_id: made for made, told_id in zip(MODEL_ID.findall(said), told_ids, strict=False)}
            assert "--epochs" in smaller or shape(told) <= shape(said), words
    assert next(told_ids, None) is None  # the page shows all networks that were trained
    assert len(open_dataset("wrists", Path("data")).stems("train")) == 16
    assert len(dice) == 2 and dice[1] > dice[0]
    assert len(list(Path("masks/overlays").iterdir())) == 40
