"""The curves of trainings, as the sessions keep them that ran without a ClearML server, or as the server does."""
import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress

from utils.errors import InputError
from utils.tracking.models import OFFLINE
from utils.tracking.offline_runs import runs_dir
from utils.tracking.server import fetch_scalars

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # title -> series -> epoch from 0 -> value


def read_curves(task_id: str) -> Curves:
    """What the task reported as scalars, {} where they are gone. Of a step that was reported again the last value
    counts."""
    if not task_id.startswith(OFFLINE):
        with suppress(InputError):
            return fetch_scalars(task_id)
        return {}
    curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    path = runs_dir() / "offline" / task_id / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for event in (event for line in lines for event in json.loads(line)):
            if event["type"] == "training_stats_scalar":
                curves[event["metric"]][event["variant"]][int(event["iter"])] = float(event["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {title: {name: dict(sorted(values.items())) for name, values in series.items()}
            for title, series in curves.items()}
