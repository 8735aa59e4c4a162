"""The ClearML server that this machine has credentials for, if any.

With credentials (environment variables or clearml.conf) everything goes to the server. Without them, or with
CLEARML_OFFLINE_MODE=1, the SDK's own offline mode writes files, and nothing reaches for a network.
"""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from utils.errors import InputError
from utils.tracking.clearml_patches import (
    get_configuration_error,
    get_login_error,
    get_server_address,
    has_credentials,
    report_from_threads,
    skip_update_check,
)

REMEDY = "check the credentials and the server's addresses, or set CLEARML_OFFLINE_MODE=1 to work without it"


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
    try:
        online = has_credentials()
    except get_configuration_error() as error:
        raise InputError(f"ClearML: {error}; mend this file or move it away") from None
    if online:
        _check_reachable(get_server_address())
    clearml.Task.set_offline(not online)
    return clearml


def _check_reachable(server: str) -> None:
    """The SDK itself would try again for minutes without a word."""
    import requests  # takes a tenth of a second, and only a server needs it
    try:
        requests.get(f"{server}/debug.ping", timeout=10)
    except requests.exceptions.SSLError:
        pass  # it is there; whether its certificate matters is a setting of the SDK
    except requests.RequestException as error:
        raise InputError(f"ClearML: {server} can't be reached ({type(error).__name__}); {REMEDY}") from None


def has_server() -> bool:
    """Whether runs and models go to a server."""
    return not prepare_clearml().Task.is_offline()


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


def correct_status(task, status: str, reason: str) -> None:
    """Marks a closed task, which the SDK leaves as completed, as "failed" or "stopped" if it is."""
    if status == "failed":
        task.mark_failed(status_reason=reason, status_message=reason, force=True)
    elif status == "stopped":
        task.mark_stopped(status_message=reason, force=True)
