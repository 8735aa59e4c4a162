"""What made an artefact: kept with each of them, so that scripts.verify can follow it back to the images."""
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from utils.options import plain_value
from utils.paths import ROOT
from utils.ranks import processes

PACKAGES = ("torch", "numpy", "opencv-python-headless", "h5py", "scipy", "scikit-image", "pillow", "segment-anything",
            "timm", "transformers", "nnunetv2")  # on which results depend

_arguments: dict[str, Any] = {}


def note_arguments(arguments: dict[str, Any]) -> None:
    """Those of the stage that runs, defaults included."""
    _arguments.clear()
    _arguments.update({name: plain_value(value) for name, value in arguments.items()})


def describe_run() -> dict[str, Any]:
    """The command of this process, its arguments, the versions of what it computes with, this project's commit ("" if
    it is no checkout, with "+" if files differ from it), and the numbers of threads and, if there are several, of
    processes, on which rounding depends. The same command gives the same answer: neither time nor machine are in it."""
    torch = sys.modules.get("torch")
    return {"command": shlex.join(["python", *sys.orig_argv[1:]]), "arguments": dict(_arguments),
            "versions": {"python": platform.python_version(), **_find_versions(PACKAGES)}, "commit": _find_commit(),
            "threads": torch.get_num_threads() if torch else None,
            **({"processes": processes()} if processes() > 1 else {})}


@cache
def _find_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def list_requirements() -> list[str]:
    """Of the packages that this project asks for, those that are installed, as pip reads them: `torch==2.14.1`."""
    lines = (line for path in sorted(ROOT.glob("requirements*.txt"))
             for line in path.read_text(encoding="utf-8").splitlines())
    asked = tuple(line.partition("==")[0] for line in lines if "==" in line)
    return [f"{package}=={found.partition('+')[0]}" for package, found in _find_versions(asked).items()]


@cache
def _find_commit() -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        changes = _ask_git("status", "--porcelain", "--untracked-files=no")
        return _ask_git("rev-parse", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not allowed to look
        return ""


def _ask_git(*command: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True,
                          env=environment, timeout=30).stdout.strip()
