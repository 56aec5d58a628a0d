"""The numbered scripts of examples/so100, run as printed against the emulator."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import BIN, preloaded, preloaded_scripts
from helpers.paths import REPO
from helpers.waiting import LONG, wait_until

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.commands import COMMANDS
from lerobot_policy_vla0.tools.so100_emulator import SO100Emulator
from lerobot_policy_vla0.tools.so100_emulator.emulator import options_file

EXAMPLES = REPO / "examples" / "so100"
FPS = 10  # the scripts' chunk of 15 steps lasts longer than it takes to compute on a busy machine


def script(name: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script the way a user does: from anywhere, with the environment's commands on the path."""
    return subprocess.run(
        ["bash", EXAMPLES / name, *arguments],
        cwd="/",
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """``vla0 emulate-so100`` running, and the scripts' settings."""
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    pytest.importorskip("zmq", reason="pip install pyzmq")
    if not (BIN / "lerobot-record").exists():
        pytest.skip("no lerobot-record: pip install 'lerobot[core_scripts]'")
    folder = tmp_path_factory.mktemp("so100")
    options = folder / "options.sh"
    process = subprocess.Popen(
        [
            *preloaded("-m", "lerobot_policy_vla0.tools.commands", "emulate-so100"),
            *("--folder", folder / "arms", "--options", options, "--size", "64", "48"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: options.exists() or process.poll() is not None)
    assert options.exists(), process.communicate()[1]
    settings = {"FPS": FPS, "EPISODES": 1, "EPISODE_S": 3, "RESET_S": 0, "STEPS": 2}
    scripts = preloaded_scripts(
        folder / "bin", "vla0", "lerobot-record", "lerobot-train", "lerobot-rollout", "lerobot-replay"
    )
    yield {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "SO100_OPTIONS": str(options),
        "RUN": str(folder / "run"),
        **{name: str(value) for name, value in settings.items()},
    }
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=LONG) == 0
    assert not options.exists()  # scripts do not go on with ports that are gone


@pytest.mark.sim
def test_the_scripts_run_in_their_order(environment: dict[str, str]) -> None:
    from lerobot.datasets import LeRobotDataset

    names = sorted(path.name for path in EXAMPLES.glob("[0-9]_*.sh"))
    assert [int(name[0]) for name in names] == list(range(1, len(names) + 1))
    said = {}
    for name in names:
        if name == "2_inspect.sh" and "inspect-dataset" not in COMMANDS:
            continue
        finished = script(name, environment)
        assert finished.returncode == 0, f"{name}: {finished.stdout[-4000:]}"
        said[name] = finished.stdout

    run = Path(environment["RUN"])
    recorded = LeRobotDataset("local/so100", root=run / "dataset")
    assert (recorded.num_episodes, recorded.fps) == (1, FPS)
    assert 2 < recorded.num_frames <= 3 * FPS + 1  # a busy machine records fewer
    assert (run / "train" / "checkpoints" / "000002" / "pretrained_model" / "model.safetensors").is_file()

    rolled_out = LeRobotDataset("local/rollout_so100", root=run / "rollout")
    assert rolled_out.num_episodes == 1
    assert recorded.meta.features.keys() == rolled_out.meta.features.keys()
    shown, done = (np.stack(d.hf_dataset.with_format("numpy")["action"]) for d in (recorded, rolled_out))
    # Whatever an untrained policy wants, it stays within what was demonstrated.
    margin = 1e-3 * np.ptp(shown, axis=0)
    assert (done >= shown.min(axis=0) - margin).all()
    assert (done <= shown.max(axis=0) + margin).all()
    assert "Traceback" not in "".join(said.values())

    again = script("1_record.sh", environment)
    assert again.returncode == 2
    assert re.search(r"error: .*/run/dataset exists and is left alone: set RUN", again.stdout)
    assert recorded.num_frames == LeRobotDataset("local/so100", root=run / "dataset").num_frames


def test_without_arms_the_scripts_say_where_to_get_them(tmp_path: Path) -> None:
    finished = script("1_record.sh", {"SO100_OPTIONS": str(tmp_path / "none.sh")})
    assert finished.returncode == 2
    assert f"error: {tmp_path}/none.sh is missing" in finished.stdout
    assert f"vla0 emulate-so100 --options {tmp_path}/none.sh" in finished.stdout


def test_the_options_file_is_bash_and_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "options.sh"
    with SO100Emulator(tmp_path / "it's here") as emulator:
        with options_file(emulator, path):
            # A quote and a space in a path survive bash.
            shown = subprocess.run(
                ["bash", "-c", 'source "$0"; printf "%s\\n" "${ROBOT[@]}" "${TELEOP[@]}"', path],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            assert shown == [*emulator.robot_options(), *emulator.teleop_options()]
            with options_file(emulator, path):  # a second emulator takes over
                pass
        assert not path.exists()
        path.write_text("ROBOT=(--robot.port=/dev/ttyACM0)\n")
        with pytest.raises(ConfigError, match=r"options.sh exists and is not an emulator's"):
            options_file(emulator, path).__enter__()
        assert path.read_text().startswith("ROBOT=")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) == path.name[0].isdigit()
