"""The ClearML server that this machine has credentials for, if any.

With credentials (environment variables or clearml.conf) everything goes to the server. Without them, or with
CLEARML_OFFLINE_MODE=1, the SDK's own offline mode writes files, and nothing reaches for a network.

The SDK waits for a server for hours. Here nobody waits for longer than `get_patience` says: then `ServerGone` is
raised, and from `give_up` on this process works offline.
"""
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from utils.errors import InputError
from utils.provenance import list_requirements
from utils.tracking.clearml_patches import (
    abandon_task,
    get_configuration_error,
    get_login_error,
    get_server_address,
    has_credentials,
    leave_argparse,
    list_packages,
    report_from_threads,
    skip_update_check,
)

REMEDY = "check the credentials and the server's addresses, or set CLEARML_OFFLINE_MODE=1 to work without it"
PATIENCE = "SAM_BURDEN_SERVER_PATIENCE"  # in the environment
PINGS = 6  # in the time that a server may be silent
LONGEST = 10  # times the patience may one upload take while the server answers
Answer = TypeVar("Answer")

_gone: list[str] = []  # why this process has given its server up


class ServerGone(Exception):
    """The server, or the place of its files, can't be worked with any more."""


def get_patience() -> float:
    """Seconds for which a server may be silent. Raises InputError."""
    text = os.environ.get(PATIENCE) or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise InputError(f"{PATIENCE}={text}: give the seconds that a ClearML server may be silent, such as 60")
    return seconds


@cache
def prepare_clearml() -> ModuleType:
    """The SDK, online or offline from then on.

    Raises:
        InputError: clearml.conf can't be read, or the server that the credentials are for can't be reached.
    """
    os.environ.setdefault("CLEARML_LOG_LEVEL", "WARNING")
    import clearml  # takes half a second
    report_from_threads()
    skip_update_check()
    leave_argparse()
    if packages := list_requirements():  # none where this project is an installed package itself
        list_packages(packages)
    try:
        online = has_credentials()
    except get_configuration_error() as error:
        raise InputError(f"ClearML: {error}; mend this file or move it away") from None
    if online and (problem := _find_problem(get_server_address(), min(10, get_patience()))):
        raise InputError(f"ClearML: {get_server_address()} {problem}; {REMEDY}")
    clearml.Task.set_offline(not online)
    return clearml


def _find_problem(server: str, timeout: float) -> str:
    """Why the server can't be worked with; "" if it answers. The SDK itself would try again without a word."""
    import requests  # takes a tenth of a second, and only a server needs it
    try:
        code = requests.get(f"{server}/debug.ping", timeout=timeout).status_code
    except requests.exceptions.SSLError:
        return ""  # it is there; whether its certificate matters is a setting of the SDK
    except requests.RequestException as error:
        return f"can't be reached ({type(error).__name__})"
    return f"answers with error {code}" if code >= 500 else ""


def has_server() -> bool:
    """Whether runs and models go to a server."""
    return not prepare_clearml().Task.is_offline() and not _gone


def is_given_up() -> bool:
    """Whether the server was lost on the way: threads of the SDK may still wait for it, so that this process must be
    ended without them."""
    return bool(_gone)


def give_up(task, reason: str) -> None:
    """Goes on without the server, as offline. The calls that wait for it are left behind."""
    _gone.append(reason)
    abandon_task(task)


def call_server(call: Callable[..., Answer], *arguments: Any, longest: float = LONGEST) -> Answer:
    """What the call returns, as long as the server answers meanwhile. Ctrl-C ends the waiting.

    Raises:
        ServerGone: it was silent for `get_patience`, or the call takes `longest` times that, or it failed.
        InputError: of the call.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["answer"] = call(*arguments)
        except BaseException as error:  # goes to the thread that waits
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _wait(thread, get_patience(), longest)
    if isinstance(error := outcome.get("error"), InputError | get_login_error()):
        raise error
    if error is not None:
        raise ServerGone(f"{type(error).__name__}: {str(error).strip()[:200]}") from error
    return outcome["answer"]


def _wait(thread: threading.Thread, patience: float, longest: float) -> None:
    began = answered = time.monotonic()
    while True:
        thread.join(patience / PINGS)
        if not thread.is_alive():
            return
        problem = _find_problem(get_server_address(), patience / PINGS)
        now = time.monotonic()
        answered = answered if problem else now
        if now - answered > patience:
            raise ServerGone(f"{get_server_address()} {problem}")
        if now - began > longest * patience:
            raise ServerGone(f"{get_server_address()} or the place of its files took more than {now - began:.0f} s")


def ask_server(call: Callable[..., Answer], *arguments: Any) -> Answer:
    """As `call_server`, where nothing can be done without the answer.

    Raises:
        InputError: also where there is none, or the credentials are refused.
    """
    with explain_refusals():
        try:
            return call_server(call, *arguments)
        except ServerGone as error:
            raise InputError(f"ClearML: {error}; {REMEDY}") from None


@contextmanager
def explain_refusals() -> Iterator[None]:
    """Refused credentials, and a file server that can't be written to, are the user's to mend.

    Raises:
        InputError: instead of the SDK's own errors.
    """
    try:
        yield
    except (get_login_error(), ValueError) as error:
        task = prepare_clearml().Task.current_task()
        if task:
            task.mark_failed(status_message=str(error), force=True)
        raise InputError(f"ClearML: {error}; {REMEDY}") from None


def fetch_arguments(task_id: str) -> dict[str, str]:
    """Those of a task on the server: "<section>/<name>" -> text.

    Raises:
        InputError: there is no such task, or no server.
    """
    return ask_server(lambda: prepare_clearml().Task.get_task(task_id).get_parameters())


def fetch_scalars(task_id: str) -> dict[str, dict[str, dict[int, float]]]:
    """Those of a task on the server: title -> series -> step -> value; {} without a server.

    Raises:
        InputError: there is no such task, or the server doesn't answer.
    """
    if not has_server():
        return {}
    scalars = ask_server(lambda: prepare_clearml().Task.get_task(task_id).get_reported_scalars())
    return {title: {name: dict(zip(map(int, points["x"]), points["y"], strict=True)) for name, points in series.items()}
            for title, series in scalars.items()}


def correct_status(task, status: str, reason: str) -> None:
    """Marks a closed task, which the SDK leaves as completed, as "failed" or "stopped" if it is."""
    if status == "failed":
        task.mark_failed(status_reason=reason, status_message=reason, force=True)
    elif status == "stopped":
        task.mark_stopped(status_message=reason, force=True)
