"""Writes a question for the backbone, and reads a subtask from its answer.

A question looks as the base model knows questions: its own chat, its own system message, and no word about actions.
"""

from __future__ import annotations

import re
from dataclasses import replace

from lerobot_policy_vla0.errors import PromptError
from lerobot_policy_vla0.text.prompt import PromptSettings

#: LeRobot's keys (from 0.6.2 on) of what is asked for and of the request itself.
QUERY_KIND = "query_kind"
QUERY_TEXT = "query_text"

#: LeRobot's kinds: a free question, and a goal whose next subtask is asked for.
VQA = "vqa"
NEXT_SUBTASK = "next_subtask"

#: The system message that Qwen's chat template writes if a conversation has none.
QUESTION_SYSTEM_PROMPT = "You are a helpful assistant."

_SUBTASK_REQUEST = (
    "What should the robot do next? Answer with one short instruction in one line, and with nothing else."
)


def question_settings(settings: PromptSettings) -> PromptSettings:
    """Return the settings of a policy's questions: as for actions, but without the actions' system message and state.

    The pictures, their number of tokens and the longest prompt stay the same.
    """
    return replace(settings, system_prompt=QUESTION_SYSTEM_PROMPT, state_dim=0)


def question_text(kind: object, text: object, task: str = "") -> str:
    """Return what the user's turn of the chat says after the pictures.

    A free question stands as it is. For a subtask, the chat also says the present instruction: the model remembers
    nothing, and only the pictures and that instruction tell it how far the robot is.

    Args:
        kind: `VQA` or `NEXT_SUBTASK`.
        text: the question, or the goal.
        task: the present instruction; only a request for a subtask says it, and only if it is not the goal.

    Raises:
        PromptError: if the kind is unknown, or the text is empty or no text.

    >>> question_text(VQA, "What is on the table?", task="wave")
    'What is on the table?'
    >>> print(question_text(NEXT_SUBTASK, "Tidy the table.", task="Pick up the cup."))
    Goal: Tidy the table.
    The robot is doing this now: Pick up the cup.
    What should the robot do next? Answer with one short instruction in one line, and with nothing else.
    """
    if kind not in (VQA, NEXT_SUBTASK):
        raise PromptError(f"{QUERY_KIND} is {kind!r}, expected {VQA!r} or {NEXT_SUBTASK!r}.")
    what = "question" if kind == VQA else "goal"
    if not isinstance(text, str) or not text.strip():
        raise PromptError(
            f"the {what} is {text!r}, expected a text that is not empty. Write what you want to know, such as "
            + ("'What is on the table?'." if kind == VQA else "'Tidy the table.'.")
        )
    if kind == VQA:
        return text
    lines = [f"Goal: {text}"]
    if task.strip() and task != text:
        lines.append(f"The robot is doing this now: {task}")
    return "\n".join([*lines, _SUBTASK_REQUEST])


#: What may stand before an entry of a list: "1.", "2)", "(3)", "-", "*", "Step 4:". Several may follow each other.
_LIST_MARKER = re.compile(r"^(?:\s*(?:[-*+•–]\s+|\(?\d+[.):](?=\s|$)|step\s+\d+\s*[.):-]))+", re.IGNORECASE)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("`", "`"), ("**", "**"))


def subtask_line(answer: str) -> str:
    r"""Return the first line of an answer that says something, without a list marker or quotes around it.

    The result is empty if there is none.

    >>> subtask_line('1. "Open the drawer."\n2. Put the cup in.')
    'Open the drawer.'
    >>> subtask_line("\n- Step 1: move 2.5 cm to the left")
    'move 2.5 cm to the left'
    >>> subtask_line("1.\n\n")
    ''
    """
    for line in answer.splitlines():
        line = _LIST_MARKER.sub("", line).strip()
        for start, end in _QUOTES:
            if len(line) >= len(start + end) and line.startswith(start) and line.endswith(end):
                line = line[len(start) : -len(end)].strip()
        if line:
            return line
    return ""


def has_subtask(answer: str) -> bool:
    r"""Return whether the first part of an answer already holds a whole subtask: more text would not change it.

    >>> has_subtask("1. Open the dr"), has_subtask("1. Open the drawer.\n2.")
    (False, True)
    """
    whole, newline, _ = answer.rpartition("\n")
    return bool(newline) and bool(subtask_line(whole))
