"""Python in a process of its own, which knows neither the user's ClearML settings nor the state of this process."""
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.clearml_server import SECRET_KEY, ClearMLServer

ROOT = Path(__file__).parents[1]
WATCH_NETWORK = """
import os, socket, sys
def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (
            event == "socket.connect" and args[0].family != socket.AF_UNIX):
        os.write(2, f"network: {event} {args}\\n".encode())
sys.addaudithook(watch)
"""


def run_python(arguments: list[str], runs: Path, server: ClearMLServer | None = None) -> str:
    """What `python <arguments>` prints, with clearml.conf, if there shall be one, in `runs`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML", "TRAINS"))}
    environment |= {"SAM_BURDEN_RUNS": str(runs), "CLEARML_CONFIG_FILE": str(runs / "clearml.conf"),
                    "HOME": str(runs.parent / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                    **(server.environment if server else {})}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET_KEY not in done.stdout + done.stderr
    return done.stdout + done.stderr


def run_code(code: str, *arguments: str, folder: Path, **options) -> str:
    """Runs the code in a process of its own; what it asks of the network is printed."""
    script = folder / "stage.py"
    script.write_text(WATCH_NETWORK + code)
    return run_python([str(script), *arguments], **options)


def printed(name: str, output: str) -> str:
    """What stands behind `name: ` in the output."""
    return re.search(rf"^{name}: (.*)$", output, re.MULTILINE)[1]
