"""Times what ClearML costs a stage, without a server and with one on this machine.

    python -m benchmarks.tracking

In a process of its own each time, a training of --epochs epochs of a tiny U-Net runs untracked, then twice as a stage
that reports its curves and pictures and keeps its model. The bound is 2 seconds for begin and end of a task; imports,
which a process pays once, are counted apart. Seconds of the processor stand beside those of the clock: where other
programs run, the clock counts them, too, and where the tracker waits, the processor doesn't.

Reads   nothing
Writes  nothing
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clearml_server import running_server
from utils.cli import run_stage, stage_parser
from utils.options import positive_int
from utils.paths import ROOT

PARTS = {"untracked": (0, 1), "imports": (1, 2), "begin": (3, 4), "end": (5, 6), "whole stage": (3, 6),
         "begin of the second": (7, 8), "end of the second": (9, 10)}  # between which of the notes below
STAGE = """
import json, sys, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from unet_training import training
from unet_training.checkpoint import Training
from unet_training.epoch import bce_loss
from unet_training.hyper_params import Schedule
from unet_training.networks.u_net import UNet
from unet_training.trainer import Prepared, fit, publish

epochs, folder = int(sys.argv[1]), Path(sys.argv[2])
times = []

def note():
    times.append((time.perf_counter(), time.process_time()))

class Untracked:
    continued = False
    def __getattr__(self, name):
        return lambda *_, **__: None

def train(experiment):
    torch.manual_seed(0)
    data, cpu = TensorDataset(torch.rand(4, 1, 64, 48), torch.rand(4, 2, 64, 48) < 0.5), torch.device("cpu")
    model, batches = UNet(2, base_width=8, n_last_channel=8), DataLoader(data, 4)
    described = Training("phantom", ("left", "right"), (64, 48), 0.4, 0.2)
    fit(Prepared(model, model, batches, batches, bce_loss([1.0, 2.0], cpu), described), Schedule(epochs), cpu,
        experiment, folder / "state.pt")
    publish(experiment, model, described, folder / "state.pt")

train(Untracked())  # to warm up
note()
train(Untracked())
note()
from utils.tracking.experiment import start
from utils.tracking.server import prepare_clearml
prepare_clearml()
note()
for _ in range(2):
    note()
    with start("train", {"stage": "initial", "epochs": epochs}, ("initial",), module="unet_training.training") as run:
        note()
        train(run)
        note()
    note()
print("times:", json.dumps(times))
"""


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("benchmarks.tracking", __doc__)
    parser.add_argument("--epochs", type=positive_int, default=40, help="of the training")
    return parser


def main(args: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns, without and with a server, the seconds of each of `PARTS`: of the clock, and of the processor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"offline": measure(args.epochs, folder / "offline", {"CLEARML_OFFLINE_MODE": "1"})}
        with running_server(folder / "files") as server:
            found["with a server"] = measure(args.epochs, folder / "online", server.environment)
    print(f"| seconds of the clock (of the processor), {args.epochs} epochs | {' | '.join(found)} |\n|---|---:|---:|")
    for part in PARTS:
        print(f"| {part} | {' | '.join('{:.2f} ({:.2f})'.format(*times[part]) for times in found.values())} |")
    return found


def measure(epochs: int, folder: Path, environment: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Of one process with these settings of ClearML."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML", "TRAINS"))}
    kept |= {"SAM_BURDEN_RUNS": str(folder / "runs"), "CLEARML_CONFIG_FILE": str(folder / "none"), **environment}
    done = subprocess.run([sys.executable, "-c", STAGE, str(epochs), str(folder)], cwd=ROOT, text=True, env=kept,
                          stdout=subprocess.PIPE, check=True)
    times = json.loads(done.stdout.rpartition("times: ")[2])
    return {part: tuple(times[last][kind] - times[first][kind] for kind in range(2))
            for part, (first, last) in PARTS.items()}


if __name__ == "__main__":
    run_stage(main, get_args_parser())
