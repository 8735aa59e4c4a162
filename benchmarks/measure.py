"""Times a baseline and ours in turn, prints the ratios, and keeps them."""
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import cv2
import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything.fast.linear import linear
from utils.files import atomic_path
from utils.memory import keep_freed_memory
from utils.options import option
from utils.paths import ROOT

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SIDE = 2048  # of the matrices whose product shows what a machine can do
TITLE = """# Benchmarks

Each section was written by the command in its title with `--record`, in one run, on the processor in brackets. First of
all the ratios of what has a target, the paper's time over ours, on two CPU cores and on a GPU. In lines that end with
idle or busy, one undisturbed thread stands in the paper's place:
"""
HEADER = ("| step | baseline ms | ours ms | ratio | target | largest difference | changed pixels |\n"
          "|---|---:|---:|---:|---:|---:|---:|")
SUMMARY_HEADER = ("| step | CPU | target | GPU | target | largest difference | changed pixels | benchmark |\n"
                  "|---|---:|---:|---:|---:|---:|---:|---|")
TARGETS = {  # ratios asked for, on two CPU cores and on a GPU
    "mask cleaning": (500, 100),
    "whole refinement": (9, 30),
    "image encoder vit_b, float32": (1.35, 2),
    "image encoder vit_h, float32": (1.15, 2),
    "image encoder vit_b, bf16 option": (4, 8),
    "image encoder vit_h, bf16 option": (3, 8),
    "write, float32": (20, 20),
    "read for one refinement, float32": (20, 20),
    "training step, bf16 option": (2.2, 3),
    "prediction": (3, 5),
    "random walk, all classes": (4, None),
    "refinement, idle": (1.7, None),
    "refinement, one core busy": (0.67, None),
    "embedding, idle": (1.7, None),
    "embedding, one core busy": (0.67, None),
    "prediction, idle": (1.7, None),
    "prediction, one core busy": (0.67, None),
    "training step, idle": (1.7, None),
    "training step, one core busy": (0.67, None),
}


@dataclass(frozen=True)
class Step:
    """One line of a benchmark; times are medians in milliseconds, per image."""

    step: str
    baseline_ms: float
    ours_ms: float
    max_abs_diff: float
    changed_pixels: int

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.baseline_ms / self.ours_ms

    def line(self, device: torch.device) -> str:
        """The line as printed."""
        target = TARGETS.get(self.step, (None, None))[device.type == "cuda"]
        cells = [self.step, f"{self.baseline_ms:.2f}", f"{self.ours_ms:.2f}", f"{self.ratio:.2f}", f"{target or ''}",
                 f"{self.max_abs_diff:.1e}", str(self.changed_pixels)]
        return "| " + " | ".join(cells) + " |"


class Stopwatch:
    """Collects the times of named steps of a baseline and of ours."""

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def time(self, step: str, who: str, function: Callable, *arguments: object, images: int = 1) -> object:
        """Calls `function(*arguments)`, notes how long it took for each of so many images, and returns its result.

        The stages' setting of the memory allocator belongs to ours; the baseline has PyTorch's.
        """
        keep_freed_memory(who == "ours")
        self._wait()
        start = time.perf_counter()
        result = function(*arguments)
        self._wait()
        self._seconds.setdefault((step, who), []).append((time.perf_counter() - start) / images)
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def fastest(self, name: str, who: str) -> float:
        """Seconds of the fastest round."""
        return min(self._seconds[name, who])

    def step(self, name: str, max_abs_diff: float, changed_pixels: int) -> Step:
        """The medians of one step, without its first round, which warms up, where there are more."""
        baseline, ours = (self.milliseconds(name, who) for who in ("baseline", "ours"))
        return Step(name, baseline, ours, max_abs_diff, changed_pixels)

    def milliseconds(self, name: str, who: str) -> float:
        """The median of one of the two, without the first round as `step`."""
        rounds = self._seconds[name, who]
        return 1e3 * median(rounds[1:] or rounds)


def operations(function: Callable, *arguments: object) -> int:
    """How many floating point operations `function(*arguments)` takes in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def speed(count: float, milliseconds: float, device: torch.device) -> str:
    """So many operations in that time, beside what this machine reaches at most."""
    return f"{count / 1e9:.1f} GFLOP at {count / milliseconds / 1e6:.0f} GFLOP/s, {limits(device)}"


def limits(device: torch.device) -> str:
    """What this machine reaches in one large matrix product, in float32 and in bfloat16."""
    reached = []
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
        watch = Stopwatch(device)
        for _ in range(4):
            watch.time("product", "ours", linear, rows, weight)
        reached.append(2 * SIDE ** 3 / watch.fastest("product", "ours") / 1e9)
    return "a large product reaches {:.0f}, in bfloat16 {:.0f}".format(*reached)


@dataclass(frozen=True)
class ReportOptions:
    """Where a table is kept beside the screen."""

    json: Path | None = option(None, "write the lines to this file, too", type=Path, metavar="FILE")
    record: bool = option(False, f"put the table into benchmarks/{RESULTS.name}")


def report(options: ReportOptions, benchmark: str, device: torch.device, what: str, steps: list[Step]) -> None:
    """Prints the table, and keeps it where the options say so. `what` describes inputs and settings."""
    machine, what = describe_machine(), f"On {device.type}: {what}"
    rows = [HEADER, *(step.line(device) for step in steps)]
    print("\n".join([machine, what, *rows]))
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps([{**asdict(step), "ratio": step.ratio} for step in steps], indent=1))
    if options.record:
        title = f"python -m benchmarks.{benchmark} ({processor(device)})"
        record(title, "\n".join(["", machine, "", what, "", *rows, ""]))


def record(title: str, text: str) -> None:
    """Replaces the section of that title, and sums up all of them."""
    sections = RESULTS.read_text(encoding="utf-8").split("\n## ")[1:] if RESULTS.exists() else []
    kept = [section for section in sections if section.partition("\n")[0] != title]
    sections = sorted([*kept, f"{title}\n{text}"])
    with atomic_path(RESULTS) as temporary:
        parts = [f"{TITLE}\n{_summary(sections)}", *sections]
        temporary.write_text("\n## ".join(part.rstrip("\n") + "\n" for part in parts), encoding="utf-8")


def _summary(sections: Sequence[str]) -> str:
    """A table of the recorded lines that have a target, in the order of `TARGETS`."""
    rows = []
    for section in sections:
        title, _, text = section.partition("\n")
        on_gpu = "\nOn cuda: " in text
        for line in text.splitlines():
            step, *cells = line.strip("| ").split(" | ")
            if step in TARGETS:
                _, _, ratio, _, *found = cells
                cpu_target, gpu_target = (str(target or "") for target in TARGETS[step])
                rows.append([step, "" if on_gpu else ratio, cpu_target, ratio if on_gpu else "", gpu_target, *found,
                             title.removeprefix("python -m benchmarks.")])
    rows.sort(key=lambda row: list(TARGETS).index(row[0]))
    return "\n".join([SUMMARY_HEADER, *(f"| {' | '.join(row)} |" for row in rows)])


def describe_machine() -> str:
    """Processor and GPU, threads, how busy it is, versions; one line."""
    gpu = f", {processor(torch.device('cuda'))}" if torch.cuda.is_available() else ""
    return (f"{processor(torch.device('cpu'))}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, load "
            f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}, OpenCV {cv2.__version__}")


def processor(device: torch.device) -> str:
    """The model of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                  if line.startswith("model name")]
        return next(iter(models), platform.machine())
    return platform.processor() or platform.machine()
