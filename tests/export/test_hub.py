"""The hub: an encoder is sent to a local stand-in of its HTTP API and read from there, by real commands."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from moco.encoders.containers import open_weights
from moco.encoders.files import read_encoder
from moco.errors import EXIT_INPUT, EXIT_OK, InputError
from moco.export.__main__ import main
from tests.export.test_export import pretrained

ROOT = Path(__file__).resolve().parent.parent.parent
NAME, COMMIT = "someone/digits-encoder", "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files`: what was committed, by name. `asked`: requests that it has no answer to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, object]] = []
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """The few requests that create a repository, commit to it, list and read it."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.send(b'{"error": "Invalid username or password."}', 401, Content_Type="application/json")
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(content))
            self.json({"url": f"{hub.address}/{NAME}"})
        elif self.path.startswith(f"/api/models/{NAME}/preupload/"):
            files = json.loads(content)["files"]
            self.json(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        elif self.path.startswith(f"/api/models/{NAME}/commit/"):
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.json({"success": True, "commitUrl": f"{hub.address}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT})
        elif self.path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        else:
            hub.asked.append(f"POST {self.path}")
            self.send(b"{}", 404)

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
        if path in (
            f"/api/models/{NAME}",
            f"/api/models/{NAME}/revision/main",
            f"/api/models/{NAME}/revision/{COMMIT}",
        ):
            self.json(about)
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self.json([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                       for name, data in hub.files.items()])  # fmt: skip
        elif (found := re.fullmatch(rf"/{NAME}/resolve/[^/]+/(.+)", path)) and found[1] in hub.files:
            data = hub.files[found[1]]
            self.send(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            hub.asked.append(f"{self.command} {self.path}")
            self.send(b'{"error": "not found"}', 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def python(hub: Hub, folder: Path, *words: str, token: str = "hf_good") -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_sent_and_read_again(hub: Hub, tmp_path: Path) -> None:
    """The weights that come back are the run's, the card says how it was trained, and nothing private goes out."""
    pretrained(tmp_path / "checkpoint_0006.pth.tar")
    push = ["-m", "moco.export", "checkpoint_0006.pth.tar", "--push-to-hub", NAME, "--licence", "mit", "--private"]
    sent = python(hub, tmp_path, *push)
    assert (sent.returncode, hub.asked) == (0, []), sent.stderr
    assert f"sent: {hub.address}/{NAME}; read it with --pretrained hf-hub:{NAME}" in sent.stdout
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert {"README.md", "config.json", "metadata.json", "model.safetensors"} <= set(hub.files)
    assert not any(b"secret" in content for content in hub.files.values())
    card = hub.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "timm")
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert f'"hf-hub:{NAME}"' in card and "loss align-uniform" in card

    hub.files["evil.bin"] = b"a pickle"  # is not even fetched
    read = f"from moco.encoders.files import read_encoder; import torch; f = read_encoder('hf-hub:{NAME}');"
    read += "torch.save({'arch': f.arch, 'epoch': f.epoch, 'state': f.state}, 'read.pth')"
    done = python(hub, tmp_path, "-c", read)
    assert (done.returncode, hub.asked) == (0, []), done.stderr
    found, own = torch.load(tmp_path / "read.pth"), read_encoder(tmp_path / "checkpoint_0006.pth.tar")
    assert (found["arch"], found["epoch"]) == ("resnet18", 7)
    assert all(torch.equal(value, own.state[key]) for key, value in found["state"].items())
    assert not list((tmp_path / "home").rglob("evil.bin"))

    denied = python(hub, tmp_path, *push, "--output-dir", "again", token="hf_bad")
    assert denied.returncode == EXIT_INPUT
    assert denied.stderr.startswith(f"error: {NAME} was not sent: ") and denied.stderr.count("\n") == 1
    assert (tmp_path / "again" / "model.safetensors").exists()
    missing = python(hub, tmp_path, "-m", "moco.evaluate", "hf-hub:someone/else", "--dataset", "digits")
    assert missing.returncode == EXIT_INPUT
    assert "hf-hub:someone/else cannot be fetched" in missing.stderr and missing.stderr.count("\n") == 1


def test_a_dry_run_writes_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained(tmp_path / "c.pth.tar")
    assert main([str(tmp_path / "c.pth.tar"), "--push-to-hub", NAME, "--dry-run"]) == EXIT_OK
    assert (tmp_path / "c-huggingface" / "README.md").exists()
    assert f"not sent: {NAME} would hold README.md, config.json" in capsys.readouterr().out


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "c.pth.tar")
    cases = [
        (["--push-to-hub", "one"], "must have the form USER/NAME"),
        (["--push-to-hub", NAME, "--to", "onnx"], "sends --to huggingface or safetensors, not onnx"),
        (["--to", "timm", "--dry-run"], "--dry-run works only with --push-to-hub"),
        ([], "required: --to"),
    ]
    for words, told in cases:
        assert main([path, *words]) == EXIT_INPUT
        assert told in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main([path, "--push-to-hub", NAME]) == EXIT_INPUT
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_a_strangers_metadata_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"file": "../secret.pth"}')
    with pytest.raises(InputError, match="does not name a file beside it"):
        open_weights(tmp_path)
