"""`vla0 serve --policy.path=...`: unmodified openpi and vla-eval clients, LeRobot's protocol, misbehaving clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp", reason="pip install 'lerobot_policy_vla0[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'lerobot_policy_vla0[serve]'")
pytest.importorskip("msgpack", reason="pip install 'lerobot_policy_vla0[serve]'")

from helpers.served import Alone, openpi_message, save_policy, serving, vla_eval_message
from helpers.waiting import LONG, free_port

from lerobot_policy_vla0.errors import CheckpointError, ConfigError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.serving.messages import pack_for_openpi, pack_for_vla_eval, unpack
from lerobot_policy_vla0.tools.serving.websocket_server import Limits

#: Clients have requirements of their own (openpi's needs NumPy 1), so they have an environment of their own.
CLIENTS = Path(__file__).parents[3] / ".venv-clients/bin/python"
WORKER = Path(__file__).parents[2] / "helpers/client_worker.py"
needs_clients = pytest.mark.skipif(not CLIENTS.exists(), reason="no .venv-clients: `make setup` makes it")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("fleet") / "policy")


@pytest.fixture(scope="module")
def port(checkpoint: Path) -> Any:
    with serving(checkpoint, limits=Limits(robots=4, message_bytes=200_000)) as number:
        yield number


def expected(checkpoint: Path, first: int, steps: int) -> list[np.ndarray[Any, Any]]:
    alone = Alone(checkpoint)
    alone.policy.reset()
    return [alone.action(first + step) for step in range(steps)]


def run_client(kind: str, port: int, first: int, steps: int) -> list[Any]:
    """Let an unmodified client send observations; return what it was answered."""
    ended = subprocess.run(
        [CLIENTS, WORKER, kind, str(port), str(first), str(steps)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answers: list[Any] = json.loads(ended.stdout.splitlines()[-1])
    return answers


# ---------------------------------------------------------------------- unmodified clients


@needs_clients
def test_openpis_client_gets_the_policys_actions(port: int, checkpoint: Path) -> None:
    answers = run_client("openpi", port, 10, 3)
    assert answers[0]["actions_per_answer"] == 2
    assert answers[0]["cameras"] == ["observation.images.image", "observation.images.image2"]
    # The policy asks the model every second step, so the client's observations are those of every second one.
    alone = Alone(checkpoint)
    alone.policy.reset()
    for seed, answer in zip(range(10, 13), answers[1:], strict=True):
        rows = [alone.action(seed), alone.action(seed)]
        np.testing.assert_allclose(np.array(answer), np.stack(rows), atol=1e-6)


@needs_clients
def test_vla_evals_episodes_side_by_side_get_the_policys_actions(port: int, checkpoint: Path) -> None:
    """Three processes of vla-eval's own runner with a toy benchmark, at the same time."""
    with ThreadPoolExecutor(3) as threads:
        runs = list(threads.map(lambda k: run_client("vla-eval", port, 100 * k, 5), (1, 2, 3)))
    for number, run in zip((1, 2, 3), runs, strict=True):
        assert run[0] == {"success": True, "steps": 5}
        np.testing.assert_allclose(
            np.array(run[1:]), np.stack(expected(checkpoint, 100 * number, 5)), atol=1e-6
        )


# ---------------------------------------------------------------------- clients that misbehave


def in_session(port: int, talk: Callable[[Any], Awaitable[Any]], path: str = "/", **options: Any) -> Any:
    """Open a websocket and talk over it."""

    async def run() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{port}{path}", max_msg_size=0, **options) as socket,
        ):
            return await asyncio.wait_for(talk(socket), LONG)

    return asyncio.run(run())


async def ask_openpi(socket: Any, seed: int) -> np.ndarray[Any, Any]:
    await socket.send_bytes(pack_for_openpi(openpi_message(seed)))
    actions: np.ndarray[Any, Any] = unpack((await socket.receive()).data)["actions"]
    return actions


def test_garbage_is_answered_with_an_error_and_the_robot_goes_on(port: int, checkpoint: Path) -> None:
    async def talk(socket: Any) -> tuple[list[str], Any]:
        await socket.receive()
        errors = []
        for bad in (b"\xc1\xc1", pack_for_openpi({"prompt": "push"}), pack_for_openpi({"a": object})):
            await socket.send_bytes(bad)
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.TEXT  # openpi's client raises texts
            errors.append(message.data)
        return errors, await ask_openpi(socket, 7)

    errors, actions = in_session(port, talk)
    assert errors[0].startswith("ServingError: 2 bytes cannot be read as msgpack")
    assert errors[1].startswith(
        "CameraError: the message has no picture of the policy's camera 'observation.images.image'"
    )
    assert "expected booleans, integers or floats" in errors[2]
    np.testing.assert_allclose(actions[0], expected(checkpoint, 7, 1)[0], atol=1e-6)


def test_vla_eval_errors_carry_the_number_of_what_they_answer(port: int) -> None:
    async def talk(socket: Any) -> list[Any]:
        answers = []
        wrong = vla_eval_message(1) | {"images": {}}
        for seq, (kind, payload) in enumerate(
            [("hello", {}), ("episode_start", {}), ("observation", wrong), ("dance", {}), ("observation", 3)]
        ):
            await socket.send_bytes(
                pack_for_vla_eval({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0})
            )
            if kind != "episode_start":  # it has no answer
                answers.append(unpack((await socket.receive()).data))
        return answers

    hello, camera, kind, payload = in_session(port, talk, "/vla-eval")
    assert hello["type"] == "hello" and hello["payload"]["protocol_version"] == 1
    assert [one["seq"] for one in (camera, kind, payload)] == [2, 3, 4]
    assert camera["payload"]["error"].startswith("CameraError: ")
    assert "the message's type is 'dance'" in kind["payload"]["error"]
    assert "expected type, payload (a mapping)" in payload["payload"]["error"]


def test_a_client_that_dies_floods_or_sends_too_much_disturbs_no_other(port: int, checkpoint: Path) -> None:
    async def die(socket: Any) -> None:
        await socket.receive()
        await socket.send_bytes(pack_for_openpi(openpi_message(1)))
        socket._response.connection.transport.abort()  # with its answer on the way

    async def flood(socket: Any) -> None:
        await socket.receive()
        data = pack_for_openpi(openpi_message(2))
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.0):
                while True:  # without ever reading an answer
                    await socket.send_bytes(data)

    async def send_too_much(socket: Any) -> int:
        await socket.receive()
        await socket.send_bytes(b"\0" * 300_000)
        while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
            assert message.type is not aiohttp.WSMsgType.BINARY
        return int(message.data)

    async def work(socket: Any) -> list[Any]:
        await socket.receive()
        return [(await ask_openpi(socket, seed))[0] for seed in (20, 21, 22, 23)]

    with ThreadPoolExecutor(4) as threads:
        working = threads.submit(in_session, port, work)
        for bad in (die, flood):
            threads.submit(in_session, port, bad, autoclose=False)
        assert threads.submit(in_session, port, send_too_much, autoclose=False).result() == 1009
        done = working.result()
    alone = Alone(checkpoint)
    alone.policy.reset()
    for seed, action in zip((20, 21, 22, 23), done, strict=True):
        np.testing.assert_allclose(action, alone.action(seed), atol=1e-6)
        alone.action(seed)


def test_no_more_robots_than_allowed_and_the_figures_say_what_happened(checkpoint: Path) -> None:
    async def talk(port: int) -> tuple[int, str, str]:
        async with aiohttp.ClientSession() as session:
            address = f"http://127.0.0.1:{port}"
            async with session.ws_connect(address) as first:
                await first.receive()
                await ask_openpi(first, 1)
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(address)
                async with (
                    session.get(f"{address}/health") as health,
                    session.get(f"{address}/metrics") as figures,
                ):
                    return refused.value.status, await health.text(), await figures.text()

    with serving(checkpoint, limits=Limits(robots=1)) as port:
        status, health, figures = asyncio.run(talk(port))
    assert status == 503
    assert json.loads(health)["status"] == "ok"
    lines = figures.splitlines()
    assert 'vla0_robots{protocol="openpi"} 1.0' in lines
    assert 'vla0_requests_total{outcome="answered",protocol="openpi"} 1.0' in lines
    assert "vla0_chunks_total 1.0" in lines


# ---------------------------------------------------------------------- addresses and tokens


def test_a_token_is_asked_for_and_found_in_header_or_address(checkpoint: Path) -> None:
    async def status(port: int, path: str, **headers: str) -> int:
        async with aiohttp.ClientSession() as session:
            try:
                socket = await session.ws_connect(f"http://127.0.0.1:{port}{path}", headers=headers)
            except aiohttp.WSServerHandshakeError as refused:
                return refused.status
            await socket.close()
            return 101

    with serving(checkpoint, token="secret") as port:
        assert asyncio.run(status(port, "/")) == 401
        assert asyncio.run(status(port, "/", Authorization="Api-Key wrong")) == 401
        assert asyncio.run(status(port, "/", Authorization="Api-Key secret")) == 101
        assert asyncio.run(status(port, "/vla-eval?token=secret")) == 101
        assert asyncio.run(status(port, "/metrics")) == 401


def test_what_cannot_be_served_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"--host=0\.0\.0\.0 can be reached.*VLA0_SERVE_TOKEN is not set"),
        serving(checkpoint, host="0.0.0.0"),
    ):
        pass
    with pytest.raises(CheckpointError, match="no checkpoint at"), serving(tmp_path / "none"):
        pass
    with (
        serving(checkpoint) as port,
        pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*--websocket-port"),
        serving(checkpoint, websocket_port=port),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-batch=4"], "--max-batch needs --policy.path: without it a client names the policy."),
        (["--policy.decoder=fast"], "--policy.decoder=fast needs --policy.path"),
        (["--policy.path=x", "--max-robots=0", "--no-grpc"], "--max-robots=0 must be at least 1"),
    ],
)
def test_options_that_do_nothing_are_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert text in capsys.readouterr().err


# ---------------------------------------------------------------------- LeRobot's protocol


def test_lerobots_clients_share_the_model_and_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install 'lerobot_policy_vla0[serve]'")
    monkeypatch.chdir(tmp_path)  # LeRobot makes a folder for logs
    from helpers.lerobot_client import LeRobotClient

    from lerobot_policy_vla0.tools.serving.policy_server import make_settings

    settings = make_settings(host="127.0.0.1", port=free_port(), obs_queue_timeout=0.3, inference_latency=0.0)
    with serving(checkpoint, grpc=settings, limits=Limits(robots=2)) as port:
        first, second = LeRobotClient(settings.port), LeRobotClient(settings.port)
        with pytest.raises(grpc.RpcError) as unknown:
            first.observe(1)
        assert unknown.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        for client in (first, second):
            client.begin(checkpoint)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LONG) as figures:
            assert 'vla0_robots{protocol="lerobot"} 2.0' in figures.read().decode().splitlines()
        first.observe(1)
        second.observe(2)
        chunks = {1: first.actions(), 2: second.actions()}  # the first is not forgotten for the second
        alone = Alone(checkpoint)
        for seed, chunk in chunks.items():
            alone.policy.reset()
            whole = alone.chunk(seed)
            np.testing.assert_allclose(chunk, whole, atol=1e-4)
        with pytest.raises(grpc.RpcError) as refused:
            first.begin(tmp_path)
        assert "this server serves" in refused.value.details()
        with pytest.raises(grpc.RpcError) as full:
            LeRobotClient(settings.port).begin(checkpoint)
        assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---------------------------------------------------------------------- the command


@pytest.mark.sim
def test_the_command_serves_and_ends_on_an_interrupt(checkpoint: Path) -> None:
    import signal
    import time

    port = free_port()
    command = [sys.executable, "-m", "lerobot_policy_vla0.tools.commands", "serve", "--no-grpc"]
    options = [f"--policy.path={checkpoint}", f"--websocket-port={port}", "--max-batch=2"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            deadline = time.monotonic() + LONG
            said = ""
            while "Ctrl-C ends this" not in said:
                assert server.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.1)
                log.seek(0)
                said = log.read()

            async def talk(socket: Any) -> Any:
                await socket.receive()
                actions = await ask_openpi(socket, 5)
                server.send_signal(signal.SIGINT)
                return actions, (await socket.receive()).type

            actions, ending = in_session(port, talk)
            assert actions.shape == (2, 2)
            assert ending in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING)  # the robot is told
            assert server.wait(LONG) == 0
        finally:
            server.kill()
        log.seek(0)
        said = log.read()
    assert said.rstrip().endswith("# ended")
    assert "Traceback" not in said
