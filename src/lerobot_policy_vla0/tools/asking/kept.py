"""How much language a fine-tune kept: the base model's own answers, and how likely the policy's weights find them.

The base model answers every question greedily. Each answer's tokens then have a log-likelihood under the base model and
one under the policy's weights, given the same picture and question. If they are equal, nothing was lost.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lerobot_policy_vla0.checkpoints import adapters
from lerobot_policy_vla0.checkpoints.files import resolve_checkpoint
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.decoding.free_text import refuse_unable
from lerobot_policy_vla0.errors import CheckpointError, QuestionError, Vla0Error
from lerobot_policy_vla0.text.question import VQA
from lerobot_policy_vla0.tools.asking.pictures import assign_files, question_batch, read_files
from lerobot_policy_vla0.tools.loading import load_processors

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

_LINE = '{"images": "table.png", "question": "What is on the table?"}'


@dataclass(frozen=True)
class Asked:
    """One question of the file.

    Attributes:
        text: the question.
        images: as `assign_files` takes them.
    """

    text: str
    images: list[str]


@dataclass(frozen=True)
class Answer:
    """The base model's answer to one question, and the mean log-likelihood of its tokens.

    Attributes:
        question: its text.
        answer: its text.
        tokens: how many, the end included.
        base: under the base model.
        policy: under the weights that answer the policy's questions: an adapter is off if it can be.
        with_adapter: with the adapter on; None if none could be switched off.
    """

    question: str
    answer: str
    tokens: int
    base: float
    policy: float
    with_adapter: float | None


@dataclass(frozen=True)
class KeptLanguage:
    """The answers to a file of questions."""

    policy: str
    base: str
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    def mean(self, of: Callable[[Answer], float | None]) -> float | None:
        """Return the mean per token of one of the three log-likelihoods; None if it was not measured."""
        values = [(of(answer), answer.tokens) for answer in self.answers]
        known = [value * tokens for value, tokens in values if value is not None]
        return sum(known) / self.tokens if len(known) == len(values) else None


def read_questions(file: Path) -> list[Asked]:
    """Read a JSONL file: one object a line, with ``question`` and ``images``.

    ``images`` is a file for the only camera, a list in the cameras' order, or an object of camera and file, where
    ``*`` stands for all cameras that are not named. Files are relative to the JSONL file.

    Raises:
        QuestionError: naming the file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(
            f"--kept={file} cannot be read ({error}). Give a file of lines such as {_LINE}."
        ) from error
    questions = [_parse(line, f"{file}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise QuestionError(f"--kept={file} holds no question. Write lines such as {_LINE}.")
    return questions


def _parse(line: str, where: str) -> Asked:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise QuestionError(f"{where} is no JSON ({error}). Write one line such as {_LINE}.") from error
    if not isinstance(content, dict) or set(content) != {"images", "question"}:
        keys = sorted(content) if isinstance(content, dict) else content
        raise QuestionError(f"{where} has {keys}, expected 'images' and 'question', as in {_LINE}.")
    images, text = content["images"], content["question"]
    if isinstance(images, str):
        images = [images]
    elif isinstance(images, dict):
        images = [f"{camera}={name}" for camera, name in images.items()]
    if (
        not isinstance(text, str)
        or not isinstance(images, list)
        or not all(isinstance(i, str) for i in images)
    ):
        raise QuestionError(
            f"{where}: 'question' must be a text and 'images' a file, a list of files, or an object of camera and "
            f"file, as in {_LINE}."
        )
    return Asked(text, images)


def measure(
    path: str | Path,
    config: VLA0Config,
    file: Path,
    *,
    max_new_tokens: int,
    progress: Callable[[str], None] = lambda line: None,
) -> KeptLanguage:
    """Let the base model answer questions, and measure its answers under the base's and under a policy's weights.

    One model is in memory at a time.

    Args:
        path: the policy's folder or Hub repo.
        config: from `loading.load_config`; ``vlm_model_name`` says where the base model is.
        file: see `read_questions`.
        max_new_tokens: longest answer.
        progress: is called with a line after each question.

    Raises:
        QuestionError, PromptError, CameraError, ImageError: naming the line of the file that cannot be asked.
        CheckpointError: if the policy or its base model cannot be loaded.
    """
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy  # imports transformers

    refuse_unable(config)
    # 1. All questions are read before a model is loaded.
    preprocess, _ = load_processors(path, config)
    questions = read_questions(file)
    batches = []
    for number, asked in enumerate(questions, start=1):
        try:
            pictures = read_files(assign_files(asked.images, config.camera_keys), file.parent)
            batches.append(question_batch(preprocess, pictures, VQA, asked.text))
        except Vla0Error as error:
            raise type(error)(f"{file}, question {number}: {error}") from error

    # 2. The base model answers.
    folder = resolve_checkpoint(path)
    base = _load_base(config, folder)
    answers: list[Tensor] = []
    texts: list[str] = []
    under_base: list[Tensor] = []
    for batch in batches:
        answers.append(base.generate_text_ids(batch, max_new_tokens=max_new_tokens))
        texts.append(base.vlm.text_of(answers[-1]).strip())
        under_base.append(base.text_log_likelihood(batch, answers[-1]).cpu())
        progress(f"{config.vlm_model_name} answered {len(answers)} of {len(batches)} questions")
    del base
    gc.collect()
    torch.cuda.empty_cache()

    # 3. The policy's weights read the answers.
    policy = VLA0Policy.from_pretrained(folder, config=config, merge_adapter=False)
    on = adapters.can_switch_off(policy.vlm)
    results = []
    for asked, batch, ids, text, at_base in zip(questions, batches, answers, texts, under_base, strict=True):
        plain = policy.text_log_likelihood(batch, ids)
        adapted = policy.text_log_likelihood(batch, ids, with_adapter=True) if on else None
        results.append(
            Answer(
                question=asked.text,
                answer=text,
                tokens=len(ids),
                base=at_base.mean().item(),
                policy=plain.mean().item(),
                with_adapter=None if adapted is None else adapted.mean().item(),
            )
        )
        progress(f"{path} read {len(results)} of {len(batches)} answers")
    return KeptLanguage(str(path), config.vlm_model_name, results)


def _load_base(config: VLA0Config, folder: Path) -> VLA0Policy:
    """Return an untrained policy on the base model: its weights are the base's own."""
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

    revision = None
    if adapters.is_adapter(folder):
        name, known = adapters.base_of(folder)
        revision = known if name == config.vlm_model_name else None
    fresh: Any = replace(config)
    fresh.use_peft, fresh.lora_vision, fresh.pretrained_path = False, False, None
    try:
        policy = VLA0Policy(fresh, vlm_revision=revision)
    except OSError as error:
        raise CheckpointError(
            f"the base model {config.vlm_model_name!r} could not be loaded ({error}), and --kept compares the policy "
            "with it. Say where it is with --policy.vlm_model_name=..., or check the network and HF_HUB_OFFLINE."
        ) from error
    policy.to(config.device)
    policy.eval()
    return policy


# ---------------------------------------------------------------------- reports


def summary(kept: KeptLanguage) -> dict[str, Any]:
    """Return the numbers for JSON. Log-likelihoods are means per token."""
    return {
        "policy": kept.policy,
        "base": kept.base,
        "questions": len(kept.answers),
        "tokens": kept.tokens,
        "base_log_likelihood": kept.mean(lambda answer: answer.base),
        "policy_log_likelihood": kept.mean(lambda answer: answer.policy),
        "with_adapter_log_likelihood": kept.mean(lambda answer: answer.with_adapter),
        "answers": [asdict(answer) for answer in kept.answers],
    }


def terminal(kept: KeptLanguage) -> str:
    """Return the report for a terminal."""
    adapter = kept.mean(lambda answer: answer.with_adapter)
    rows = [
        (kept.mean(lambda answer: answer.base), f"{kept.base}, which wrote the answers"),
        (
            kept.mean(lambda answer: answer.policy),
            f"{kept.policy}, "
            + ("its own weights" if adapter is None else "its adapter switched off for answers"),
        ),
    ]
    if adapter is not None:
        rows.append((adapter, f"{kept.policy}, its adapter on, as it acts"))
    lines: Iterable[str] = (
        f"  {answer.base:8.3f} {answer.policy:8.3f}  {_short(answer.question)}  ->  {_short(answer.answer)}"
        for answer in kept.answers
    )
    return "\n".join(
        [
            f"mean log-likelihood per token, {kept.tokens} tokens of {len(kept.answers)} answers:",
            *(f"  {value:8.3f}  {name}" for value, name in rows),
            "",
            "      base   policy  question  ->  the base model's answer",
            *lines,
        ]
    )


def _short(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
