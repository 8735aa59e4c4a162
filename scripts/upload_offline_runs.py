"""Brings the runs that were made without a ClearML server, with their models, to a server.

    python -m scripts.upload_offline_runs

Needs ClearML credentials: run `clearml-init` once, or set the CLEARML_API_* environment variables. Prints a line
`old id -> new id` for every task and model. A second run brings only what is new. The old model ids stay valid
in this project, and the new ones work on every machine with these credentials.

Reads   runs/offline/, runs/models/ (or the folder that SAM_BURDEN_RUNS names)
Writes  tasks, models and weights on the server; runs/uploaded.json, which remembers them
"""
import argparse

from utils.cli import run_stage, stage_parser
from utils.tracking.upload import upload_offline_runs


def get_args_parser() -> argparse.ArgumentParser:
    return stage_parser("scripts.upload_offline_runs", __doc__)


def main(args: argparse.Namespace) -> None:
    uploaded = False
    for old_id, new_id in upload_offline_runs():
        print(f"{old_id} -> {new_id}")
        uploaded = True
    if not uploaded:
        print("nothing to upload")


if __name__ == "__main__":
    run_stage(main, get_args_parser())
