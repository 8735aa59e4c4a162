"""Everything of ClearML's SDK that we touch without it being documented: a function each, which says why.

tests/utils/test_clearml_patches.py fails for each one that a new version of the SDK makes useless. The SDK is imported
when it is needed: that takes half a second.
"""
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

OWN_TASK = ("CLEARML_PROC_MASTER_ID", "TRAINS_PROC_MASTER_ID")  # where the SDK notes a process's task; it sets both
PLACEHOLDERS = ("uploading_file", "failed_uploading")  # the SDK's addresses of weights that aren't there

_agents_tasks = [task_id] if (task_id := os.environ.get("CLEARML_TASK_ID")) else []


def report_from_threads() -> None:
    """Without a process of its own for reports, which takes 8 s to close.

    The documented setting (development.report_use_subprocess) makes the SDK read all its files a second time.
    """
    from clearml.backend_interface.task.task import Task
    Task._report_subprocess_enabled = False


def skip_update_check() -> None:
    """Asks nobody but the server. The documented setting only hides the answer."""
    from clearml.utilities.check_updates import CheckPackageUpdates
    CheckPackageUpdates._package_version_checked = True


def leave_argparse() -> None:
    """The SDK's import makes argparse read the arguments of an agent's task by itself, which it can't where they are in
    sections."""
    import argparse

    from clearml.binding.args import PatchArgumentParser
    for name in ("parse_args", "parse_known_args"):
        if original := getattr(PatchArgumentParser, f"_original_{name}"):
            setattr(argparse.ArgumentParser, name, original)


def keep_recent_sessions_in(folder: Path) -> None:
    """The SDK writes a list of recent sessions to the home directory, and no setting changes where."""
    from clearml.config.cache import SessionCache
    SessionCache.SESSION_CACHE_FOLDER = str(folder)


def leave_parents_task() -> None:
    """A program that a task started inherits its id and would report to it, without a task of its own."""
    for name in OWN_TASK:
        if os.environ.get(name, "").partition(":")[0] != str(os.getpid()):
            os.environ.pop(name, None)


def follow_agents_task(is_meant: bool) -> None:
    """Whether the task that is made next is the one that an agent runs this process for, if one does: the SDK takes it
    for every task of the process. It is one's own once."""
    from clearml.config.remote import override_current_task_id
    override_current_task_id(_agents_tasks.pop() if is_meant and _agents_tasks else None)


def name_entry_point(module: str) -> None:
    """A task is rerun as `python -m <module>`, without the command line of today, which its arguments stand for; "":
    as it was started. The SDK asks for it from a thread, whose answer takes the place of `Task.set_script`."""
    from clearml.backend_interface.task.repo.scriptinfo import ScriptInfo
    ask = vars(ScriptInfo).get("ask_running_module") or vars(ScriptInfo)["detect_running_module"]

    def name_module(_: type, script: dict) -> dict:
        return {**script, "entry_point": f"-m {module}", "working_dir": "."} if script else script

    ScriptInfo.ask_running_module = ask
    ScriptInfo.detect_running_module = classmethod(name_module) if module else ask


def list_packages(packages: Sequence[str]) -> None:
    """What an agent installs, a line each. The SDK parses all Python files of the folder for it, which takes seconds of
    a core beside every stage, and overlooks what isn't imported, such as LiteMedSAM's weights.

    The documented `Task.force_requirements_env_freeze` takes a file, or all that is installed.
    """
    from clearml.backend_interface.task.repo.scriptinfo import ScriptRequirements
    text = "\n".join([f"# Python {' '.join(sys.version.split())}", "", *packages, ""])
    ScriptRequirements.get_requirements = lambda *_, **__: (text, "")  # of pip and of conda


def set_arguments(task, arguments: Mapping) -> None:
    """Shows arguments in their sections with their help, in two calls of the server. `Task.set_parameter`, which is
    documented, takes two for each."""
    names = {name: f"{argument.section}/{name}" for name, argument in arguments.items()}
    task._set_parameters({names[name]: argument.value for name, argument in arguments.items()}, __update=True,
                         __parameters_descriptions={names[name]: argument.help for name, argument in arguments.items()})


@contextmanager
def show_results_page_alone() -> Iterator[None]:
    """Of all that the SDK prints when a task begins; offline there is no such page, and so no line."""
    from clearml import Logger
    report = Logger.report_text

    def report_quietly(logger: Logger, msg: str, *_: object, **__: object) -> None:
        report(logger, msg, print_console=msg.startswith("ClearML results page"))

    Logger.report_text = report_quietly
    try:
        yield
    finally:
        Logger.report_text = report


def skip_archive() -> None:
    """The SDK zips the folder of an offline session when it ends, and prints where. Where that fails, it leaves it."""
    from clearml import task

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no archive is wanted")

    task.ZipFile = refuse


def hide_end_of_abort(task) -> None:
    """Without the SDK's lines about a callback that an abort in the web UI has called."""
    task.log.addFilter(_is_about_no_callback)


def _is_about_no_callback(record: logging.LogRecord) -> bool:
    return "### TASK STOPPING" not in record.getMessage()


def stop_watching(task) -> None:
    """The SDK ends a process whose task isn't in progress any more on the server."""
    task._at_exit_called = True
    if task._dev_worker:
        task._dev_worker.unregister()


def abandon_task(task) -> None:
    """Lets go of a task whose server is gone, and goes offline: it is not the process's own any more, and nothing waits
    for it at the end. `Task.set_offline` would ask the server for its status."""
    from clearml import Logger, Task
    from clearml.backend_api import Session
    from clearml.backend_interface.base import InterfaceBase
    stop_watching(task)
    task._reporter._metrics._offline_log_filename = Path(os.devnull)  # where reports under way go that find it offline
    Task._Task__register_at_exit(None)
    Logger._remove_std_logger()
    Task._Task__main_task = Task._Task__forked_proc_main_pid = None
    InterfaceBase._offline_mode = Session._offline_mode = True
    follow_agents_task(False)
    for name in OWN_TASK:
        os.environ.pop(name, None)


def watch_losses() -> Callable[[], int]:
    """What counts the reports that the server has refused: the SDK drops them with a line in its log."""
    counter = _Counter(logging.WARNING)
    for name in ("clearml.Metrics", "clearml.log"):
        logging.getLogger(name).addHandler(counter)
    return lambda: counter.count


class _Counter(logging.Handler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "failed" in record.getMessage()


def release_signals(task) -> None:
    """Takes the SDK's signal handlers away: they keep forked workers from being terminated."""
    task._remove_signal_hooks()


def has_credentials() -> bool:
    """Whether the environment or clearml.conf has what a server asks for, and offline mode isn't demanded.

    The SDK itself says it only by an exception when a task is made. Raises ConfigurationError, see below.
    """
    from clearml.backend_api.session.defs import ENV_ACCESS_KEY, ENV_AUTH_TOKEN, ENV_OFFLINE_MODE, ENV_SECRET_KEY
    from clearml.config import config_obj
    key = ENV_ACCESS_KEY.get() or config_obj.get("api.credentials.access_key", "")
    secret = ENV_SECRET_KEY.get() or config_obj.get("api.credentials.secret_key", "")
    return not ENV_OFFLINE_MODE.get() and bool((key and secret) or ENV_AUTH_TOKEN.get())


def get_server_address() -> str:
    """The server that the environment or clearml.conf names, without making a session."""
    from clearml.backend_api import Session
    return Session.get_api_server_host()


def get_configuration_error() -> type[Exception]:
    """What the SDK raises when clearml.conf can't be read."""
    from clearml.backend_config.errors import ConfigurationError
    return ConfigurationError


def get_login_error() -> type[Exception]:
    """What the SDK raises when the server refuses the credentials."""
    from clearml.backend_api.session.session import LoginError
    return LoginError


def is_uploaded(uri: str | None) -> bool:
    """Whether a model on the server has its weights: the SDK registers it before the upload, with a placeholder."""
    return bool(uri) and not uri.endswith(PLACEHOLDERS)
