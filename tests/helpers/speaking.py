"""A small base model that has learned a few answers, and policies on it: they can be asked, unlike ``tiny`` ones.

The fixture ``speaking_backbone`` is such a model. Besides `save_speaking_policy`, `so100_policy.save_policy` makes a
policy on it, for the emulated arm: ``save_policy(folder, vlm_model_name=str(speaking_backbone))``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.lerobot_types import TransitionKey
from lerobot.processor.converters import create_transition, transition_to_batch
from torch import Tensor

from helpers.backbones import save_backbone
from helpers.tiny import CAMERA, make_config, make_stats
from lerobot_policy_vla0 import VLA0Config, VLA0Policy, VLA0PromptProcessorStep, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.decoding.free_text import Question, prepare_question
from lerobot_policy_vla0.text.question import NEXT_SUBTASK, QUERY_KIND, QUERY_TEXT, VQA

#: What `save_speaking_backbone` teaches: kind and text of a query, and the answer.
LESSONS = (
    (VQA, "What is on the table?", "A red ball."),
    (VQA, "Is the drawer open?", "No."),
    (NEXT_SUBTASK, "Tidy up.", "1. Lift the ball.\n2. Drop it."),
)
#: Instructions that the robot may have when the subtask is asked for.
TASKS = ("", "wave", "Lift the ball.")
#: The question whose answer the model knows best, and that answer.
QUESTION_TEXT, ANSWER = LESSONS[0][1:]
#: The goal whose plan the model knows, and the subtask in it.
GOAL, SUBTASK = LESSONS[2][1], "Lift the ball."


def save_speaking_backbone(folder: Path) -> Path:
    """Write a base model as the Hub has them that answers `LESSONS` greedily, whatever its one picture shows."""
    tokenizer = build_tiny_tokenizer()
    save_backbone(folder, tokenizer, len(tokenizer))
    policy = VLA0Policy(make_config(vlm_model_name=str(folder)))
    lessons = []
    for kind, text, answer in LESSONS:
        spelled = [*tokenizer.encode(answer, add_special_tokens=False), policy.vlm.tokens.end]
        for task in TASKS if kind == NEXT_SUBTASK else TASKS[:1]:
            lessons.append((ask(policy.config, kind, text, task=task), torch.tensor(spelled)))
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    learned = 0
    while learned < 20:  # steps in a row
        picture = made_up_picture(generator)
        losses = [
            answer_loss(policy, read_question(policy, {**batch, CAMERA: picture}), answer)
            for batch, answer in lessons
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        learned = learned + 1 if max(losses) < 0.05 else 0
    policy.vlm.model.save_pretrained(folder)
    return folder


def made_up_picture(generator: torch.Generator, size: int = 64) -> Tensor:
    """Return ``(1, 3, size, size)`` in ``[0, 1]``: coarse or fine patches around a mean colour."""
    cells = 2 ** int(torch.randint(0, 6, (), generator=generator))
    patches = torch.rand(1, 3, cells, cells, generator=generator)
    mean, contrast = torch.rand(2, generator=generator)
    picture = (mean + contrast * (patches - 0.5)).clamp(0.0, 1.0)
    return torch.nn.functional.interpolate(picture, (size, size), mode="bilinear")


def answer_loss(policy: VLA0Policy, question: Question, answer: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of an answer ``(A,)``, with gradients."""
    ids = torch.cat([question.ids[0], answer]).unsqueeze(0)
    hidden = policy.vlm.hidden_states(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        question.pixel_values,
        question.grid_thw,
        first=question.ids.shape[1] - 1,
    )
    return torch.nn.functional.cross_entropy(policy.vlm.logits(hidden[0, :-1]), answer)


def save_speaking_policy(folder: Path, backbone: Path, **options: Any) -> Path:
    """Write the checkpoint of an untrained policy on a base model; ``options`` are those of `make_config`."""
    config = make_config(vlm_model_name=str(backbone), **options)
    VLA0Policy(config).save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(config, make_stats(config.action_dim)):
        pipeline.save_pretrained(folder)
    return folder


def ask(
    config: VLA0Config, kind: str = VQA, text: str = QUESTION_TEXT, *, task: str = "", seed: int = 0
) -> dict[str, Any]:
    """Return the batch of a query as LeRobot's main branch makes it: through the whole pre-processor.

    The released LeRobot drops the keys of queries on the way in, so the steps are called one by one.
    """
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(config.action_dim))
    generator = torch.Generator().manual_seed(seed)
    observation = {
        key: torch.rand(1, *feature.shape, generator=generator)
        for key, feature in config.image_features.items()
    }
    observation["observation.state"] = torch.zeros(1, config.action_dim)
    transition = create_transition(
        observation=observation, complementary_data={"task": task, QUERY_KIND: kind, QUERY_TEXT: text}
    )
    for step in preprocess.steps:
        transition = step(transition)
    assert transition[TransitionKey.ACTION] is None
    return transition_to_batch(transition)


def read_question(policy: VLA0Policy, batch: dict[str, Any]) -> Question:
    """Return what the backbone is asked for a batch."""
    return prepare_question(batch, policy.config, policy.vlm, torch.device("cpu"))


def prompt_step(config: VLA0Config) -> VLA0PromptProcessorStep:
    """Return a policy's prompt step."""
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(config.action_dim))
    return next(step for step in preprocess.steps if isinstance(step, VLA0PromptProcessorStep))
