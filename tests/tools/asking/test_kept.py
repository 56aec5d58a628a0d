"""`vla0 ask --kept` where the outcome is known: an untouched base, one trained on actions, an adapter off and on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.paths import REPO
from helpers.speaking import ANSWER, LESSONS, QUESTION_TEXT, made_up_picture, save_speaking_policy
from helpers.tiny import CAMERA, make_batch, make_config, make_stats
from torchvision.io import write_png

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import CameraError, CheckpointError, ImageError, PromptError, QuestionError
from lerobot_policy_vla0.text.question import VQA
from lerobot_policy_vla0.tools.asking.kept import KeptLanguage, measure, read_questions, summary, terminal
from lerobot_policy_vla0.tools.loading import load_config

QUESTIONS = [(text, answer) for kind, text, answer in LESSONS if kind == VQA]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    picture = made_up_picture(torch.Generator().manual_seed(3))[0]
    write_png((picture * 255).byte(), str(folder / "a.png"))
    file = folder / "questions.jsonl"
    file.write_text(
        "".join(json.dumps({"images": "a.png", "question": text}) + "\n" for text, _ in QUESTIONS) + "\n"
    )
    return file


def kept(policy: Path, questions: Path, *options: str) -> KeptLanguage:
    return measure(policy, load_config(policy, options), questions, max_new_tokens=32)


def test_an_untouched_base_model_kept_everything(
    tmp_path: Path, speaking_backbone: Path, questions: Path
) -> None:
    result = kept(save_speaking_policy(tmp_path / "policy", speaking_backbone), questions)
    assert [(a.question, a.answer) for a in result.answers] == QUESTIONS
    assert [a.tokens for a in result.answers] == [len(answer) + 1 for _, answer in QUESTIONS]
    for answer in result.answers:
        assert answer.policy == answer.base > -0.1
        assert answer.with_adapter is None
    expected = sum(a.base * a.tokens for a in result.answers) / sum(a.tokens for a in result.answers)
    numbers = summary(result)
    assert numbers["base_log_likelihood"] == numbers["policy_log_likelihood"] == pytest.approx(expected)
    assert numbers["with_adapter_log_likelihood"] is None
    assert numbers["base"] == str(speaking_backbone)
    assert json.loads(json.dumps(numbers)) == numbers
    shown = terminal(result).splitlines()
    assert shown[0].startswith("mean log-likelihood per token, 16 tokens of 2 answers")
    assert shown[1].endswith(f"{speaking_backbone}, which wrote the answers")
    assert shown[2].endswith(f"{tmp_path / 'policy'}, its own weights")
    assert any(QUESTION_TEXT in line and ANSWER in line for line in shown[3:])


def test_training_on_actions_alone_costs_language(
    tmp_path: Path, speaking_backbone: Path, questions: Path
) -> None:
    config = make_config(vlm_model_name=str(speaking_backbone))
    policy = VLA0Policy(config).train()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for step in range(20):
        loss, _ = policy(make_batch(config, batch=4, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.save_pretrained(tmp_path / "policy")
    for pipeline in make_vla0_pre_post_processors(config, make_stats()):
        pipeline.save_pretrained(tmp_path / "policy")
    result = kept(tmp_path / "policy", questions)
    for answer in result.answers:
        assert answer.policy < answer.base - 0.5
    numbers = summary(result)
    assert numbers["policy_log_likelihood"] < numbers["base_log_likelihood"] - 0.5


def test_an_adapter_that_is_off_kept_everything_and_one_that_is_on_did_not(
    tmp_path: Path, speaking_backbone: Path, questions: Path
) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    base = VLA0Policy(make_config(vlm_model_name=str(speaking_backbone)))
    adapter = save_adapter(base, tmp_path / "adapter", speaking_backbone)
    result = kept(adapter, questions)
    for answer in result.answers:
        assert answer.policy == answer.base
        assert answer.with_adapter is not None and answer.with_adapter < answer.base - 0.1
    shown = terminal(result).splitlines()
    assert shown[2].endswith("its adapter switched off for answers")
    assert shown[3].endswith("its adapter on, as it acts")


def test_an_adapter_on_a_trained_policy_is_compared_with_the_base_model(
    tmp_path: Path, speaking_backbone: Path, questions: Path
) -> None:
    """Switched off, what remains is that policy, and not the base model."""
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    trained = save_speaking_policy(tmp_path / "trained", speaking_backbone)
    policy = VLA0Policy.from_pretrained(trained)
    with torch.no_grad():
        policy.vlm.model.model.language_model.norm.weight.mul_(0.5)  # less sure of everything
    policy.save_pretrained(trained)
    result = kept(save_adapter(policy, tmp_path / "adapter", trained), questions)
    assert all(answer.policy < answer.base for answer in result.answers)


def test_a_base_that_is_gone_is_named_with_the_fix(
    tmp_path: Path, speaking_backbone: Path, questions: Path
) -> None:
    policy = save_speaking_policy(tmp_path / "policy", speaking_backbone)
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**config, "vlm_model_name": str(tmp_path / "gone")}))
    with pytest.raises(
        CheckpointError, match=r"the base model '.*gone' could not be loaded .*--policy\.vlm_mo"
    ):
        kept(policy, questions)
    found = kept(policy, questions, f"--vlm_model_name={speaking_backbone}")
    assert all(answer.policy == answer.base for answer in found.answers)


def test_the_tiny_backbone_is_refused(tmp_path: Path, questions: Path) -> None:
    with pytest.raises(QuestionError, match="the backbone is 'tiny'"):
        measure(tmp_path, make_config(), questions, max_new_tokens=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no question\. Write lines such as"),
        ('{"images": "a.png"}', r"questions\.jsonl:1 has \['images'\], expected 'images' and 'question'"),
        ('\n{"images": "a.png", "question": "x", "answer": "y"}', r"jsonl:2 has \['answer', 'images', 'q"),
        ("[1]", r"jsonl:1 has \[1\], expected"),
        ("{", r"jsonl:1 is no JSON"),
        ('{"images": 3, "question": "x"}', r"jsonl:1: 'question' must be a text and 'images' a file"),
        ('{"images": [3], "question": "x"}', r"jsonl:1: 'question' must be a text"),
        ('{"images": "a.png", "question": null}', r"jsonl:1: 'question' must be a text"),
    ],
)
def test_lines_that_are_no_questions_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text)
    with pytest.raises(QuestionError, match=message):
        read_questions(file)
    with pytest.raises(QuestionError, match=r"gone\.jsonl cannot be read"):
        read_questions(tmp_path / "gone.jsonl")


def test_a_question_that_cannot_be_asked_is_named_before_a_model_is_loaded(
    tmp_path: Path, speaking_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_speaking_policy(tmp_path / "policy", speaking_backbone)
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / "a.png"))
    monkeypatch.setattr(
        "lerobot_policy_vla0.tools.asking.kept._load_base", lambda *_: pytest.fail("too late")
    )
    file = tmp_path / "questions.jsonl"
    errors: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"images": "b.png", "question": "x"}, ImageError, r"question 1: .*b\.png cannot be read"),
        ({"images": "a.png", "question": " "}, PromptError, "question 1: the question is ' '"),
        ({"images": ["a.png", "a.png"], "question": "x"}, CameraError, "question 1: got"),
        ({"images": {"wrist": "a.png"}, "question": "x"}, CameraError, "'wrist=a.png' names no camera"),
    ]
    for line, kind, message in errors:
        file.write_text(json.dumps(line))
        with pytest.raises(kind, match=message):
            kept(policy, file)


def test_the_example_can_be_asked_whatever_the_number_of_cameras(
    tmp_path: Path, speaking_backbone: Path
) -> None:
    from lerobot_policy_vla0.tools.asking.pictures import assign_files, read_files

    file = REPO / "examples" / "ask" / "questions.jsonl"
    asked = read_questions(file)
    assert len(asked) == 24
    used = set()
    for cameras in ([CAMERA], [CAMERA, "observation.images.wrist"]):
        for question in asked:
            pictures = read_files(assign_files(question.images, cameras), file.parent)
            assert [picture.shape for picture in pictures.values()] == [(1, 3, 224, 224)] * len(cameras)
            used.update(question.images)
    files = list(file.parent.glob("*.png"))
    assert used == {f"*={picture.name}" for picture in files}
    assert sum(picture.stat().st_size for picture in files) < 200_000
