"""What a run has told its server, kept so that nothing is lost when the server is.

    python -m utils.tracking.journal FOLDER

tells it all once more, to an offline session: in a process of its own, as the SDK of the first one may hang for good.
Prints the session's id.
"""
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from utils.paths import ROOT
from utils.tracking.arguments import Argument
from utils.tracking.clearml_patches import OWN_TASK
from utils.tracking.offline_runs import SessionEnd

SECONDS = 120  # for writing a session


@dataclass(frozen=True)
class Description:
    """What a run is, as it is shown.

    Attributes:
        parameters: what its result depends on, with their types
        kind: one of ClearML's types of tasks
        module: that reruns it; "" if it is none of the stages
        arguments: of the module, by name
    """

    name: str
    parameters: Mapping[str, Any]
    tags: Sequence[str] = ()
    kind: str = "training"
    module: str = ""
    arguments: Mapping[str, Argument] = field(default_factory=dict)


class Journal:
    """Calls of the SDK's logger, in their order."""

    def __init__(self):
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def note(self, method: str, arguments: dict[str, Any]) -> None:
        """`arguments` are those of JSON, and one array at most, named `image`."""
        self.calls.append((method, arguments))

    def keep(self, description: Description, end: SessionEnd) -> str:
        """Makes an offline session of it, which ended so, and returns that one's id.

        Raises:
            OSError, subprocess.SubprocessError: it can't be written.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            calls = []
            for number, (method, arguments) in enumerate(self.calls):
                if "image" in arguments:
                    np.save(folder / f"{number}.npy", arguments["image"], allow_pickle=False)
                calls.append([method, {key: value for key, value in arguments.items() if key != "image"}])
            content = {"description": asdict(description), "calls": calls, "end": msgspec.to_builtins(end)}
            (folder / "journal.json").write_text(json.dumps(content), encoding="utf-8")
            environment = {key: value for key, value in os.environ.items()
                           if key not in ("CLEARML_TASK_ID", *OWN_TASK)}
            done = subprocess.run([sys.executable, "-m", __name__, name], cwd=ROOT, capture_output=True, text=True,
                                  check=True, timeout=SECONDS, env={**environment, "CLEARML_OFFLINE_MODE": "1"})
        return done.stdout.split()[-1]


def tell_again(folder: Path) -> str:
    """Writes the offline session that `Journal.keep` describes; returns its id."""
    from utils.tracking.experiment import Experiment, open_offline  # which need this module, too
    content = json.loads((folder / "journal.json").read_text(encoding="utf-8"))
    described = content["description"]
    arguments = {name: Argument(**argument) for name, argument in described.pop("arguments").items()}
    experiment: Experiment = open_offline(Description(**described, arguments=arguments))
    for number, (method, values) in enumerate(content["calls"]):
        if (image := folder / f"{number}.npy").exists():
            values["image"] = np.load(image, allow_pickle=False)
        experiment.send(method, **values)
    experiment.end_offline(msgspec.convert(content["end"], SessionEnd))
    return experiment.id


if __name__ == "__main__":
    print(tell_again(Path(sys.argv[1])))
