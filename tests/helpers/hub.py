"""A stand-in for the Hub's upload API: takes commits over HTTP and writes their files into a folder."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub import RepoCard


class StandIn(BaseHTTPRequestHandler):
    """Answers what `HfApi.create_repo` and `HfApi.upload_folder` ask; all files travel in the commit itself."""

    root: Path

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer({"error": "no such file"}, 404)

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self._answer(
                {"url": f"{huggingface_hub.constants.ENDPOINT}/{asked['organization']}/{asked['name']}"}
            )
        elif self.path == "/api/validate-yaml":
            check_metadata(json.loads(body)["content"])
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    file = self.root / item["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(item["value"]["content"]))
            repo = "/".join(self.path.split("/")[3:5])
            url = f"{huggingface_hub.constants.ENDPOINT}/{repo}/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})
        else:
            self._answer({"error": f"the stand-in does not know {self.path}"}, 404)

    def _answer(self, content: dict[str, object], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def check_metadata(card: str) -> None:
    """Check that a card's metadata are YAML."""
    _, metadata, _ = card.split("---\n", 2)
    assert isinstance(yaml.safe_load(metadata), dict)


@contextmanager
def stand_in_hub(root: Path) -> Iterator[None]:
    """Send everything meant for the Hub to a server on this machine, which writes uploads into ``root``."""
    handler = type("Handler", (StandIn,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        # `RepoCard.validate` asks the Hub, whatever endpoint is set.
        patch.setattr(RepoCard, "validate", lambda card: check_metadata(str(card)))
        patch.setenv("HF_TOKEN", "hf_stand_in")
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
