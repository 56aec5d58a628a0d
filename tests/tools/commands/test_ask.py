"""`vla0 ask` as a person runs it: processes, pictures and data sets, streamed answers, and errors in one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.commands import BIN, preloaded
from helpers.paths import REPO
from helpers.speaking import ANSWER, GOAL, QUESTION_TEXT, SUBTASK, made_up_picture, save_speaking_policy
from helpers.tiny import CAMERA, make_config, make_dataset
from torchvision.io import write_png

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.tools.commands import main


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, speaking_backbone: Path) -> Path:
    return save_speaking_policy(tmp_path_factory.mktemp("policy") / "policy", speaking_backbone)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    write_png((made_up_picture(torch.Generator().manual_seed(3))[0] * 255).byte(), str(file))
    return file


def ask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `vla0 ask` in a process of its own."""
    return subprocess.run(
        preloaded(BIN / "vla0", "ask", *arguments), capture_output=True, text=True, cwd=REPO, timeout=1800
    )


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Ask what cannot be asked, in this process; returns the one line of the error."""
    capsys.readouterr()
    assert main(["ask", *arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("vla0 ask: error:")]
    assert len(lines) == 1
    assert captured.out == ""
    return lines[0]


def test_a_question_about_a_picture_is_answered_in_a_process_of_its_own(policy: Path, picture: Path) -> None:
    finished = ask(f"--policy.path={policy}", "--image", picture, QUESTION_TEXT)
    assert (finished.returncode, finished.stdout) == (0, f"{ANSWER}\n")
    assert "questions are answered by the policy's own weights" in finished.stderr


def test_a_goal_becomes_one_subtask_and_an_adapter_is_switched_off(
    tmp_path: Path, speaking_backbone: Path, picture: Path
) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    base = VLA0Policy(make_config(vlm_model_name=str(speaking_backbone)))
    adapter = save_adapter(base, tmp_path / "adapter", speaking_backbone)
    finished = ask(
        f"--policy.path={adapter}", f"--image=top={picture}", "--next-subtask", "--task=wave", GOAL
    )
    assert (finished.returncode, finished.stdout) == (0, f"{SUBTASK}\n")
    assert "fine-tuning on actions alone" not in finished.stderr


def test_a_frame_of_a_data_set_can_be_asked_about(
    tmp_path: Path,
    policy: Path,
    speaking_backbone: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lerobot_policy_vla0.tools.asking import pictures

    root = make_dataset(tmp_path / "data", episodes=2, frames=3)
    seen = {}
    original = pictures.question_batch

    def watch(preprocess: object, shown: pictures.Pictures, *rest: str) -> dict[str, object]:
        seen.update(shown)
        return original(preprocess, shown, *rest)

    monkeypatch.setattr(pictures, "question_batch", watch)
    where = [f"--policy.path={policy}", f"--dataset.root={root}", "--episode=1"]
    capsys.readouterr()
    assert main(["ask", *where, "--frame=2", QUESTION_TEXT]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"
    # The bar of the last of six frames is 5/6 of the height.
    assert seen[CAMERA].shape == (1, 3, 64, 64)
    assert bool((seen[CAMERA][..., : int(5 / 6 * 64), :] > 0.7).all())
    assert bool((seen[CAMERA][..., int(5 / 6 * 64) + 1 :, :] < 0.2).all())
    error = refusal(capsys, *where, "--frame=3", QUESTION_TEXT)
    assert "there is no frame 3 of episode 1: the dataset has the episodes 0 to 1, and this one the" in error
    renamed = save_speaking_policy(
        tmp_path / "policy", speaking_backbone, cameras=("observation.images.front",)
    )
    where[0] = f"--policy.path={renamed}"
    assert "the policy reads the cameras ['observation.images.front']" in refusal(capsys, *where, "What?")
    assert main(["ask", *where, f'--rename_map={{"{CAMERA}": "observation.images.front"}}', "What?"]) == 0


def test_length_temperature_and_seed_are_options(
    policy: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*options: str) -> str:
        capsys.readouterr()
        assert main(["ask", f"--policy.path={policy}", f"--image={picture}", *options, QUESTION_TEXT]) == 0
        return capsys.readouterr().out

    assert answer("--max-tokens=5") == "A red\n"
    hot = "--temperature=20"
    assert answer(hot, "--seed=1") == answer(hot, "--seed=1")
    assert answer(hot, "--seed=1") != answer(hot, "--seed=2")


def test_what_a_fine_tune_kept_is_a_table_or_json(policy: Path, picture: Path) -> None:
    file = picture.parent / "questions.jsonl"
    file.write_text(json.dumps({"images": {"*": "a.png"}, "question": QUESTION_TEXT}))
    finished = ask(f"--policy.path={policy}", "--kept", file, "--json")
    assert finished.returncode == 0, finished.stderr
    numbers = json.loads(finished.stdout)
    assert numbers["tokens"] == len(ANSWER) + 1
    assert numbers["policy_log_likelihood"] == numbers["base_log_likelihood"]
    finished = ask(f"--policy.path={policy}", f"--kept={file}", "--max-tokens=3")
    assert finished.stdout.startswith("mean log-likelihood per token, 3 tokens of 1 answers:\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no question was given"),
        (["x"], "neither --image nor --dataset.repo_id says where the pictures come from"),
        (["--image=a", "--dataset.repo_id=b", "x"], "--image and --dataset both say where the pictures"),
        (["--image=a", "--task=wave", "x"], "--task='wave' is for --next-subtask"),
        (["--image=a", "--json", "x"], "--json prints the numbers of --kept"),
        (["--kept=a", "x"], "--kept asks the questions of its file, greedily; leave out a question."),
        (
            ["--kept=a", "--image=b", "--temperature=1", "--next-subtask"],
            "leave out --image, --next-subtask, --",
        ),
        (["--image={picture}", ""], "the question is ''"),
        (["--image={picture}", "x" * 5000], "max_prompt_length=4096. Shorten the question text"),
        (["--image={picture}", "--image={picture}", "x"], "Give one file for each"),
        (["--image=gone.png", "x"], "gone.png cannot be read as a picture"),
        (["--image={picture}", "--max-tokens=0", "x"], "max_new_tokens=0 must be at least 1"),
        (["--image={picture}", "--temperature=-1", "x"], "temperature=-1.0 must be finite and at least 0"),
    ],
)
def test_wrong_input_is_one_line(
    policy: Path, picture: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [argument.replace("{picture}", str(picture)) for argument in arguments]
    assert message in refusal(capsys, f"--policy.path={policy}", *filled)


def test_the_tiny_backbone_and_a_bare_model_are_refused(
    tmp_path: Path, speaking_backbone: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path)
    for more in ([f"--image={picture}", "x"], ["--kept=x.jsonl"]):
        error = refusal(capsys, f"--policy.path={tmp_path}", *more)
        assert "the backbone is 'tiny'" in error and "Qwen/Qwen2.5-VL-3B-Instruct" in error
    error = refusal(capsys, f"--policy.path={speaking_backbone}", f"--image={picture}", "x")
    assert "is a backbone (qwen2_5_vl), not a trained policy" in error
