"""Many processes compute what one does; the launch configuration for sharded training holds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers.comparing import COMPARABLE, distance
from helpers.fsdp_worker import NO_JITTER, ROWS, STEPS
from helpers.paths import REPO
from helpers.tiny import make_batch, make_config, make_dataset
from helpers.waiting import free_port, wait_until
from safetensors.torch import load_file

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.checkpoints.lerobot_api import CARD_IS_LEROBOTS
from lerobot_policy_vla0.errors import ActionError, DecodeError

#: Seconds that processes have for ending after their work.
ENDING = 60
FSDP_CONFIG = REPO / "configs" / "accelerate_fsdp.yaml"


def run(command: list[str], finished: Callable[[str], bool], log: Path, **environment: str) -> str:
    """Run a command of several processes until its work is done; return what it printed.

    PyTorch's processes may wait for each other for ever while they end (`~ProcessGroupGloo` joins threads that wait for
    Python's lock). How they end is not what is tested, so they are killed if they take longer for it than `ENDING`.

    Args:
        command: arguments of Python.
        finished: tells from the output so far whether the work is done.
        log: file for the output.
        **environment: variables.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or finished(log.read_text()), lambda: log.read_text()[-4000:]
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
    finally:
        for member in (process, *children_of(process)):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait()
    text = log.read_text()
    assert finished(text), text[-4000:]
    return text


def children_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Return all processes that a process has started, sessions of their own included."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def arguments(root: Path, output: Path, batch: int) -> list[str]:
    """Return the arguments of a short, offline run of ``lerobot-train``."""
    return [
        f"--config_path={REPO / 'configs' / 'debug.yaml'}",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={root}",
        f"--output_dir={output}",
        "--steps=3",
        "--save_freq=3",
        f"--batch_size={batch}",
        *COMPARABLE,
    ]


def losses_in(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"\bloss:(\d+\.\d+)", log)]


def test_two_processes_train_as_one_with_the_same_global_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ``lerobot-train``, here with batch 4 and under ``accelerate launch`` with twice batch 2."""
    from lerobot.scripts.lerobot_train import main

    root = make_dataset(tmp_path / "data")
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments(root, tmp_path / "one", batch=4)])
    logged: list[str] = []
    monkeypatch.setattr("logging.info", lambda message, *rest: logged.append(str(message)))
    main()
    monkeypatch.undo()
    # Without --multi_gpu accelerate starts one process; LeRobot puts both on the CPU for --policy.device=cpu.
    launch = [
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    log = run(
        [
            "-m",
            "accelerate.commands.launch",
            *launch,
            f"--main_process_port={free_port()}",
            "-m",
            "lerobot.scripts.lerobot_train",
            *arguments(root, tmp_path / "two", batch=2),
        ],
        lambda text: "End of training" in text,
        tmp_path / "log.txt",
    )
    assert re.search(r"Effective batch size: 2 x 2 (dp workers x 1 grad accum )?= 4", log)
    losses, shared_losses = losses_in("\n".join(logged)), losses_in(log)
    assert len(losses) == 3
    assert shared_losses == pytest.approx(losses, abs=2e-3)  # the log has three decimals
    weights, shared_weights = (
        load_file(tmp_path / run / "checkpoints/000003/pretrained_model/model.safetensors")
        for run in ("one", "two")
    )
    start = VLA0Policy(make_config(n_bins=9)).state_dict()
    keys = [key for key in weights if key != "augmentation.state"]
    moved = distance({k: start[k] for k in keys}, {k: weights[k] for k in keys})
    assert moved > 0
    apart = distance({k: weights[k] for k in keys}, {k: shared_weights[k] for k in keys})
    assert apart < 0.02 * moved
    assert torch.equal(weights["augmentation.state"], shared_weights["augmentation.state"])


# ---------------------------------------------------------------- sharded


def launch_environment() -> dict[str, str]:
    """Return what accelerate's launcher makes of the configuration file, for the processes it would start."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(
        ["--config_file", str(FSDP_CONFIG), "--num_processes", "2", "script.py"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp
    environment: dict[str, str] = prepare_multi_gpu_env(arguments)
    return environment


def test_the_fsdp_configuration_loads_and_leaves_the_precision_to_the_policy() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FSDP_CONFIG))
    assert config.distributed_type == "FSDP"
    environment = launch_environment()
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment["FSDP_VERSION"] == "1"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


@pytest.mark.skipif(CARD_IS_LEROBOTS, reason="LeRobot 0.6.2 has --accelerator.mixed_precision instead")
def test_lerobot_leaves_autocast_bfloat16_to_the_launch_configuration() -> None:
    """LeRobot 0.6.1 names accelerate's precision by `policy.dtype`; a value it does not know must not become one."""
    import inspect

    from lerobot.scripts import lerobot_train

    source = inspect.getsource(lerobot_train)
    assert (
        'mixed_precision = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}.get(policy_dtype)'
        in source
    )


def test_autocast_bfloat16_computes_as_bfloat16_does() -> None:
    losses = []
    for dtype in ("bfloat16", "autocast_bfloat16", "float32"):
        torch.manual_seed(0)
        policy = VLA0Policy(make_config(dtype=dtype)).eval()
        losses.append(policy(make_batch(policy.config))[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_actions_rounded_on_their_way_are_refused() -> None:
    policy = VLA0Policy(make_config()).train()
    batch = make_batch(policy.config)
    batch["action"] = batch["action"].bfloat16()
    with pytest.raises(ActionError, match=r"torch\.bfloat16.*--policy\.dtype=autocast_bfloat16"):
        policy(batch)


def run_workers(program: str, folder: Path, **environment: str) -> dict[str, Any]:
    """Run a program of `helpers` in two processes, and return the result that it writes into a folder."""
    run(
        [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            f"--master_port={free_port()}",
            str(REPO / "tests" / "helpers" / program),
            str(folder),
        ],
        lambda _: (folder / "result.json").exists(),
        folder / "log.txt",
        **environment,
        PYTHONPATH=os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]),
    )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def trained_in_one_piece(steps: int) -> tuple[VLA0Policy, list[float]]:
    """Return what the programs' policy is after some steps in one process, and the losses."""
    torch.manual_seed(0)
    policy = VLA0Policy(
        make_config(n_bins=9, crop_ratio=1.0, action_mask_max_ratio=0.0, hue=0.0, **NO_JITTER)
    )
    batch = make_batch(policy.config, batch=ROWS)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy.train()
    losses = []
    for _ in range(steps):
        loss, _ = policy(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return policy, losses


def assert_same_weights(first: VLA0Policy, second: VLA0Policy) -> None:
    for key, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


UNITS = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "VLA0Policy"]


def test_sharded_training_equals_training_in_one_piece(tmp_path: Path) -> None:
    """Two processes with FSDP as the YAML sets it up, LeRobot 0.6.1's way of gathering weights, and our loader."""
    environment = {
        key: value for key, value in launch_environment().items() if key.startswith(("FSDP_", "ACCELERATE_"))
    }
    result = run_workers("fsdp_worker.py", tmp_path, **environment)
    assert result["units"] == UNITS
    policy, losses = trained_in_one_piece(STEPS)
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_weights(policy, VLA0Policy.from_pretrained(tmp_path))


def test_fsdp2_saves_and_resumes_what_one_piece_is(tmp_path: Path) -> None:
    """What LeRobot 0.6.2 asks of a sharded policy: all processes save, and a policy is built before its weights."""
    result = run_workers("fsdp2_worker.py", tmp_path)
    assert result["units"] == UNITS
    assert result["without_weights_at_first"]
    policy, losses = trained_in_one_piece(STEPS)
    assert_same_weights(policy, VLA0Policy.from_pretrained(tmp_path / "saved"))
    policy, losses = trained_in_one_piece(2 * STEPS)
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_weights(policy, VLA0Policy.from_pretrained(tmp_path / "resumed"))


def test_a_policy_whose_weights_never_came_does_not_act(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config()).eval()
    policy.save_pretrained(tmp_path)
    built = VLA0Policy(replace(policy.config, pretrained_path=tmp_path)).eval()
    with pytest.raises(DecodeError, match="NaN"):
        built.predict_action_chunk(make_batch(policy.config))
