"""ClearML's SDK still needs every patch, and every patch still works: runs that each leave one of them out."""
import json

import pytest

from tests.clearml_server import running_server
from tests.fresh_process import printed, run_code
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
PATCHES = ("report_from_threads", "skip_update_check", "keep_recent_sessions_in", "release_signals")


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
