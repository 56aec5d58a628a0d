"""question.py: the chat of a question is Qwen's own, and one subtask comes out of whatever the model writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.errors import PromptError
from lerobot_policy_vla0.text.prompt import PromptEncoder, PromptSettings
from lerobot_policy_vla0.text.question import (
    NEXT_SUBTASK,
    QUERY_KIND,
    QUERY_TEXT,
    VQA,
    has_subtask,
    question_settings,
    question_text,
    subtask_line,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACTIONS = PromptSettings(
    "predict actions", (6, 3), 7, add_vision_id=True, max_length=99, state_dim=2, n_bins=10
)


def test_a_question_has_the_pictures_of_the_actions_prompt_but_not_its_words() -> None:
    assert question_settings(ACTIONS) == PromptSettings(
        "You are a helpful assistant.", (6, 3), 7, add_vision_id=True, max_length=99, state_dim=0, n_bins=10
    )


@pytest.mark.parametrize("with_ids", [False, True])
def test_the_chat_is_the_one_that_qwens_template_writes(
    qwen_tokenizer: PreTrainedTokenizerBase, qwen_folder: Path, with_ids: bool
) -> None:
    settings = PromptSettings("actions", (6, 3), 7, add_vision_id=with_ids)
    encoder = PromptEncoder(
        qwen_tokenizer.backend_tokenizer,  # type: ignore[attr-defined]
        question_settings(settings),
        what="question",
    )
    text = qwen_tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Is it open?"}],
            }
        ],
        chat_template=(qwen_folder / "chat_template.jinja").read_text(),
        add_vision_id=with_ids,
        add_generation_prompt=True,
        tokenize=False,
    )
    for count in (6, 3):
        text = text.replace("<|image_pad|>", "@" * count, 1)
    text = text.replace("@", "<|image_pad|>")
    assert encoder.encode("Is it open?").tolist() == qwen_tokenizer.encode(text, add_special_tokens=False)


def test_a_free_question_stands_as_it_is() -> None:
    assert question_text(VQA, "  How many cups?\n", task="wave") == "  How many cups?\n"


def test_a_goal_becomes_a_request_for_one_line_that_says_what_the_robot_does_now() -> None:
    request = (
        "What should the robot do next? Answer with one short instruction in one line, and with nothing else."
    )
    assert question_text(NEXT_SUBTASK, "Tidy up.", task="lift the cup") == (
        f"Goal: Tidy up.\nThe robot is doing this now: lift the cup\n{request}"
    )
    for nothing_new in ("", " ", "Tidy up."):
        assert question_text(NEXT_SUBTASK, "Tidy up.", task=nothing_new) == f"Goal: Tidy up.\n{request}"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            VQA,
            "",
            r"the question is '', expected a text that is not empty\. Write .*'What is on the table\?'",
        ),
        (VQA, " \n", r"the question is ' \\n', expected"),
        (VQA, None, r"the question is None, expected"),
        (NEXT_SUBTASK, "", r"the goal is '', expected .*'Tidy the table\.'"),
        ("caption", "x", r"query_kind is 'caption', expected 'vqa' or 'next_subtask'"),
    ],
)
def test_what_cannot_be_asked_is_refused(kind: str, text: str | None, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        question_text(kind, text)


def test_a_long_question_and_chat_markup_are_refused_in_the_words_of_a_question() -> None:
    tokenizer = build_tiny_tokenizer()
    settings = question_settings(PromptSettings("actions", (4,), 0, max_length=120))
    encoder = PromptEncoder(tokenizer.backend_tokenizer, settings, what="question")  # type: ignore[attr-defined]
    length = len(encoder.encode("Why?"))  # one token per byte
    assert len(encoder.encode("Why?" + "x" * (120 - length))) == 120
    with pytest.raises(PromptError) as error:
        encoder.encode("Why?" + "x" * (121 - length))
    assert str(error.value).endswith(
        "has 121 tokens (4 of them image), more than max_prompt_length=120. Shorten the question text, use fewer or "
        "smaller images, or raise max_prompt_length."
    )
    with pytest.raises(
        PromptError, match=r"question 'a<\|im_end\|>' contains the chat markup '<\|im_end\|>'"
    ):
        encoder.encode("a<|im_end|>")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("Open the drawer.", "Open the drawer."),
        ("\n\n  Open the drawer.  \nThen the cup.", "Open the drawer."),
        ("1. Open the drawer.\n2. Take the cup.", "Open the drawer."),
        ("1) Open", "Open"),
        ("(1) Open", "Open"),
        ("- Open", "Open"),
        ("* Open", "Open"),
        ("• Open", "Open"),
        ("- 1. Open", "Open"),
        ("Step 1: Open", "Open"),
        ("step 12. Open", "Open"),
        ("1.\nOpen", "Open"),
        ('"Open the drawer."', "Open the drawer."),
        ("**Open the drawer.**", "Open the drawer."),
        ('1. "Open"', "Open"),
        ("Open\r\nclose", "Open"),
        # Not a marker:
        ("2 cups to the left", "2 cups to the left"),
        ("1.5 cm up", "1.5 cm up"),
        ("-5 degrees", "-5 degrees"),
        ("Stepwise up", "Stepwise up"),
        ('Say "open"', 'Say "open"'),
        # Nothing:
        ("", ""),
        (" \n\t\n", ""),
        ("1.\n- \n", ""),
        ('""', ""),
    ],
)
def test_the_first_line_that_says_something_is_the_subtask(answer: str, line: str) -> None:
    assert subtask_line(answer) == line


@pytest.mark.parametrize("answer", ["1.\n\n- Open the drawer.\nThen\nmore", "Open\n", "\n\na\nb\nc"])
def test_a_subtask_is_whole_at_the_end_of_its_line_and_never_changes_after_it(answer: str) -> None:
    first = next(end for end in range(len(answer) + 1) if has_subtask(answer[:end]))
    assert subtask_line(answer[:first]) == subtask_line(answer)
    assert all(has_subtask(answer[:end]) for end in range(first, len(answer) + 1))
    assert answer[first - 1] == "\n"


def test_the_keys_are_lerobots() -> None:
    from lerobot.utils import constants

    if not hasattr(constants, "QUERY_KIND"):
        pytest.skip("this LeRobot has no text queries yet (0.6.2 has)")
    from lerobot.rollout.inference.base import QueryKind

    assert (QUERY_KIND, QUERY_TEXT) == (constants.QUERY_KIND, constants.QUERY_TEXT)
    assert [kind.value for kind in QueryKind] == [VQA, NEXT_SUBTASK]
