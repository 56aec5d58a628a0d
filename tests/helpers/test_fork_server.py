"""What stands in for a fresh process in other tests behaves like one: files, folder, status, signals, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from helpers.commands import fresh, preloaded
from helpers.waiting import has_ended, wait_until


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_a_program_gets_arguments_files_folder_and_environment_and_its_status_comes_back(
    tmp_path: Path,
) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['X'], input()); sys.exit('no'*(len(sys.argv)-1))"
    answer = run(
        preloaded("-c", code, "a b"), cwd=tmp_path, env={**os.environ, "X": "y"}, input="typed\nmore"
    )
    assert (answer.returncode, answer.stderr) == (1, "no\n")
    assert answer.stdout == f"['-c', 'a b'] {tmp_path} y typed\n"
    program = tmp_path / "program.py"
    program.write_text(
        "import beside, sys, torch; print(beside.ME, sys.argv); torch.ones(300, 300).mm(torch.ones(300, 300))"
    )
    (tmp_path / "beside.py").write_text("ME = __name__")
    answer = run(preloaded(program, "1"))
    assert (answer.returncode, answer.stdout) == (0, f"beside ['{program}', '1']\n"), answer.stderr


def test_what_was_imported_with_other_settings_is_refused() -> None:
    answer = run(preloaded("-c", "pass"), env={**os.environ, "HF_HOME": "/elsewhere"})
    assert answer.returncode == 1
    assert "['HF_HOME'] are read at import" in answer.stderr


def test_signals_arrive_and_an_end_by_a_signal_is_one() -> None:
    code = (
        "import time\n"
        "try:\n"
        "    print('ready', flush=True); time.sleep(3600)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with subprocess.Popen(preloaded("-c", code), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == "interrupted\n"
    assert process.returncode == 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        answer = run(preloaded("-c", f"import os; os.kill(os.getpid(), {number})"))
        assert answer.returncode == -number


def test_a_program_does_not_outlive_what_stands_for_it() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    with subprocess.Popen(preloaded("-c", code), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: has_ended(program))


def test_an_inherited_file_keeps_its_number_and_a_group_ends_as_a_whole(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "helper = subprocess.Popen(['sleep', '3600'])\n"
        "number = int(sys.argv[1])\n"
        "print(os.read(number, 5).decode(), os.getpgrp() == os.getpid(), helper.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    reading, writing = os.pipe()
    os.write(writing, b"hello")
    command = preloaded("-c", code, str(reading))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, pass_fds=(reading,), start_new_session=True
    ) as process:
        assert process.stdout is not None
        said, leads, helper = process.stdout.readline().split()
        assert (said, leads) == ("hello", "True")
        process.kill()
    wait_until(lambda: has_ended(int(helper)))
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("process", [preloaded, fresh])
def test_lerobot_waits_longer_for_an_arm(process: type[list[str]], tmp_path: Path) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    program = tmp_path / "program.py"
    program.write_text(
        "from types import SimpleNamespace\n"
        "from lerobot.motors.feetech import feetech\n"
        "port = SimpleNamespace(tx_time_per_byte=0.0, getCurrentTime=lambda: 0.0)\n"
        "feetech.patch_setPacketTimeout(port, 10)\n"
        "print(port.packet_timeout)\n"
    )
    answer = run(process(program))
    assert answer.stdout == "1050.0\n", answer.stderr
