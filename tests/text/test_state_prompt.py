"""The robot's state in the prompt: its text, its ids, its units, and that the model reads it exactly when asked to."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.commands import DEBUG, evaluate, train, train_arguments
from helpers.tiny import CAMERA, make_config, make_dataset, make_raw_batch, make_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.configs.types import NormalizationMode
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_vla0 import VLA0Policy, VLA0PromptProcessorStep, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.errors import CheckpointError, ConfigError, PromptError, StateError, StatsError
from lerobot_policy_vla0.observations.batches import grey_batch
from lerobot_policy_vla0.text import prompt
from lerobot_policy_vla0.text.prompt import PromptEncoder, PromptSettings, chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
IDENTITY, MIN_MAX = NormalizationMode.IDENTITY, NormalizationMode.MIN_MAX


def encoder_of(tokenizer: PreTrainedTokenizerBase, **options: Any) -> PromptEncoder:
    given: dict[str, Any] = {
        "system_prompt": "S",
        "image_tokens": (2,),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return PromptEncoder(
        tokenizer.backend_tokenizer, PromptSettings(**{**given, "state_dim": 3, "n_bins": 1000, **options})
    )


def raw_batch(config: Any, *states: list[float], **more: Any) -> dict[str, Any]:
    return {**make_raw_batch(config, len(states)), "observation.state": torch.tensor(states), **more}


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return build_tiny_tokenizer()


# ---------------------------------------------------------------- text and ids


def test_the_prompt_is_this_text_with_the_state_as_the_actions_integers(
    tiny: PreTrainedTokenizerBase,
) -> None:
    config = make_config(state_in_prompt=True, n_bins=1000)
    pre, _ = make_vla0_pre_post_processors(config, make_stats())  # states lie in [-1, 1]
    out = pre(raw_batch(config, [-1.0, 0.25], [0.5, 1.0]))
    head = "<|im_start|>system\n6 integers 0-1000<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    pads, tail = "<|image_pad|>" * 4, "push the button<|im_end|>\n<|im_start|>assistant\n"
    first, second = (tiny.decode(row[real]) for row, real in zip(out[TOKENS], out[MASK], strict=True))
    assert first == f"{head}{pads}<|vision_end|>State: 0 625\n{tail}"
    assert second == f"{head}{pads}<|vision_end|>State: 750 1000\n{tail}"
    assert out[MASK].tolist() == [
        [False] * 3 + [True] * (out[MASK].shape[1] - 3),
        [True] * out[MASK].shape[1],
    ]
    off, _ = make_vla0_pre_post_processors(make_config(n_bins=1000), make_stats())
    plain = off(raw_batch(config, [-1.0, 0.25]))[TOKENS][0]
    assert tiny.decode(plain) == f"{head}{pads}<|vision_end|>{tail}"


STATES = st.lists(st.integers(0, 1000), min_size=3, max_size=3)
TASKS = st.one_of(
    st.sampled_from(
        ["", "\n", "\n\nx", "  two spaces", "5 10", "0", "\t7", " \n 3", "¿café?\n", "日本語 🤖"]
    ),
    st.text(st.characters(exclude_characters="|<>", exclude_categories=["Cs"]), max_size=12),
)


@given(task=TASKS, states=st.lists(STATES, min_size=1, max_size=3), vision_id=st.booleans())
@settings(max_examples=60, deadline=None)
def test_spliced_ids_are_those_of_the_whole_text_with_the_tiny_tokenizer(
    tiny: PreTrainedTokenizerBase, task: str, states: list[list[int]], vision_id: bool
) -> None:
    check_splice(tiny, task, states, vision_id)


@given(task=TASKS, states=st.lists(STATES, min_size=1, max_size=3), vision_id=st.booleans())
@settings(max_examples=60, deadline=None)
def test_spliced_ids_are_those_of_the_whole_text_with_qwens_tokenizer(
    qwen_tokenizer: PreTrainedTokenizerBase, task: str, states: list[list[int]], vision_id: bool
) -> None:
    check_splice(qwen_tokenizer, task, states, vision_id)


def check_splice(
    tokenizer: PreTrainedTokenizerBase, task: str, states: list[list[int]], vision_id: bool
) -> None:
    """The slow way tokenises the text of every frame as a whole."""
    encoder = encoder_of(tokenizer, image_tokens=(1, 1), add_vision_id=vision_id)
    for state in states:
        whole = chat_text("S", task, 2, add_vision_id=vision_id, state=state)
        assert encoder.encode(task, state).tolist() == tokenizer.encode(whole, add_special_tokens=False)


def test_the_state_costs_these_tokens_of_qwens(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(qwen_tokenizer)
    with_state = encoder.encode("push it", [0, 17, 1000]).tolist()
    # "State", ":", " ", "0", " ", "1", "7", " ", "1", "0", "0", "0", "\n"
    spelled = [1397, 25, 220, 15, 220, 16, 22, 220, 16, 15, 15, 15, 198]
    plain = encoder_of(qwen_tokenizer, state_dim=0).encode("push it").tolist()
    at = plain.index(151653) + 1  # <|vision_end|>
    assert with_state == [*plain[:at], *spelled, *plain[at:]]


def test_text_is_tokenised_once_per_task_and_few_tasks_are_kept(
    tiny: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "_TASKS_KEPT", 3)
    encoder = encoder_of(tiny)
    texts: list[str] = []
    tokenise = encoder._tokenise
    monkeypatch.setattr(encoder, "_tokenise", lambda text: texts.append(text) or tokenise(text))
    expected = encoder.encode("a", [1, 2, 3])
    per_task = len(texts)
    for frame in range(50):
        encoder.encode("a", [frame, 2, 3])
    assert len(texts) == per_task
    for task in "bcdef":
        encoder.encode("a", [0, 0, 0])  # in use, so it stays
        encoder.encode(task, [0, 0, 0])
    assert encoder._around.cache_info().currsize == 3
    assert len(texts) == 6 * per_task
    encoder.encode("b", [0, 0, 0])
    assert torch.equal(encoder.encode("a", [1, 2, 3]), expected)


def test_a_returned_prompt_may_be_changed(tiny: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(tiny)
    expected = encoder.encode("a", [1, 2, 3]).tolist()
    encoder.encode("a", [1, 2, 3]).zero_()
    assert encoder.encode("a", [1, 2, 3]).tolist() == expected


def test_the_limit_holds_for_the_longest_state_so_that_no_frame_fails_later(
    tiny: PreTrainedTokenizerBase,
) -> None:
    longest = len(encoder_of(tiny).encode("a", [1000] * 3))
    assert len(encoder_of(tiny, max_length=longest).encode("a", [1, 2, 3])) == longest - 9
    with pytest.raises(
        PromptError, match=f"has {longest} tokens with the longest state .*, more than max_prompt"
    ):
        encoder_of(tiny, max_length=longest - 1).encode("a", [1, 2, 3])


def test_a_state_too_many_or_too_short_is_refused(tiny: PreTrainedTokenizerBase) -> None:
    with pytest.raises(StateError, match="the state has 2 integers, and the prompt has room for 3"):
        encoder_of(tiny).encode("a", [1, 2])
    with pytest.raises(StateError, match="has 0 integers, and the prompt has room for 3"):
        encoder_of(tiny).encode("a")
    with pytest.raises(StateError, match="has 3 integers, and the prompt has room for 0"):
        encoder_of(tiny, state_dim=0).encode("a", [1, 2, 3])
    with pytest.raises(StateError, match=r"the batch has 1 task\(s\) and 2 state\(s\)"):
        encoder_of(tiny).encode_batch(["a"], [[1, 2, 3]] * 2)


def test_a_tokenizer_that_joins_digits_with_what_follows_is_refused(tiny: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(tiny)
    tokenise = encoder._tokenise
    encoder._tokenise = lambda text: tokenise(text.replace("0\n", "\n"))  # type: ignore[method-assign]
    with pytest.raises(Exception, match="joins the digits of the state with the text around them"):
        encoder.encode("a", [1, 2, 3])


# ---------------------------------------------------------------- units and statistics


def test_the_state_takes_the_actions_normalisation_unless_it_has_its_own() -> None:
    quantiles = NormalizationMode.QUANTILES
    assert make_config().normalization_mapping["STATE"] is IDENTITY
    assert make_config(state_in_prompt=True).normalization_mapping["STATE"] is MIN_MAX
    mapping = {"ACTION": quantiles}
    assert (
        make_config(state_in_prompt=True, normalization_mapping=mapping).normalization_mapping["STATE"]
        is quantiles
    )
    assert mapping == {"ACTION": quantiles}
    with pytest.raises(ConfigError) as error:
        make_config(
            state_in_prompt=True,
            normalization_mapping={"STATE": NormalizationMode.MEAN_STD, "ACTION": MIN_MAX},
        )
    assert str(error.value) == (
        "normalization_mapping['STATE'] is MEAN_STD, but state_in_prompt=True writes the state as integers, which "
        "needs a bounded range. Use one of ['MIN_MAX', 'QUANTILES', 'QUANTILE10']."
    )


def test_a_state_outside_its_statistics_is_clamped_and_said_once_per_dimension(
    tiny: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(state_in_prompt=True)
    pre, _ = make_vla0_pre_post_processors(config, make_stats())
    with caplog.at_level(logging.WARNING):
        out = pre(raw_batch(config, [-1.7, 0.0]))
        pre(raw_batch(config, [9.0, 0.0]))
    assert "State: 0 50\n" in tiny.decode(out[TOKENS][0])
    said = [record.getMessage() for record in caplog.records if "outside the range" in record.getMessage()]
    assert said == [
        "observation.state lies outside the range of its statistics in dimension(s) [0]; the prompt says the nearest "
        "end (logged once per dimension)"
    ]
    with caplog.at_level(logging.WARNING):
        pre(raw_batch(config, [9.0, 9.0]))
    assert "dimension(s) [1]" in caplog.text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            None,
            r"state_in_prompt=True needs 'observation.state' of shape \(batch, 2\), got None; the observation has",
        ),
        (torch.zeros(1, 3), r"of shape \(batch, 2\), got \(1, 3\)"),
        (torch.zeros(1, 1, 2), r"of shape \(batch, 2\), got \(1, 1, 2\)"),
        (
            torch.tensor([[0.0, float("nan")]]),
            r"has NaN or infinite values in dimensions \[1\], and state_in_prompt",
        ),
        (torch.tensor([[float("inf"), 0.0]]), r"has NaN or infinite values in dimensions \[0\]"),
    ],
    ids=["missing", "another size", "a time axis", "NaN", "infinite"],
)
def test_a_state_that_cannot_be_written_is_refused(state: Any, message: str) -> None:
    config = make_config(state_in_prompt=True)
    # Straight into the prompt step: the normaliser before it has errors of its own for a wrong size.
    step = make_vla0_pre_post_processors(config, make_stats())[0].steps[3]
    assert isinstance(step, VLA0PromptProcessorStep)
    observation = {CAMERA: torch.zeros(1, 3, 8, 8)} | ({} if state is None else {"observation.state": state})
    with pytest.raises(StateError, match=message):
        step({"observation": observation, "complementary_data": {"task": ["push"]}})


def test_statistics_of_the_state_are_needed_exactly_if_it_is_written() -> None:
    actions = {"action": make_stats()["action"]}
    make_vla0_pre_post_processors(make_config(), actions)
    with pytest.raises(StatsError) as error:
        make_vla0_pre_post_processors(make_config(state_in_prompt=True), actions)
    assert str(error.value) == (
        "states cannot be normalised: MIN_MAX needs the statistics 'min' and 'max' of 'observation.state', got none of "
        "'observation.state', only of ['action']. Recompute the data set's statistics: `lerobot-edit-dataset "
        "--repo_id=NAME --new_repo_id=NAME_stats --operation.type=recompute_stats`. A state of another name has to be "
        "renamed in the data set, because --rename_map renames no statistics (LeRobot 0.6.1); or train a policy with "
        "state_in_prompt=false."
    )
    with pytest.raises(
        StatsError, match="the state statistics 'min'/'max' have 3/3 values, but the state has 2 dim"
    ):
        VLA0Policy(
            make_config(state_in_prompt=True), {**actions, "observation.state": make_stats(3)["action"]}
        )


def test_a_state_that_never_changes_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    stats = make_stats()
    stats["observation.state"]["max"][1] = -1.0
    with caplog.at_level(logging.WARNING):
        make_vla0_pre_post_processors(make_config(state_in_prompt=True), stats)
    assert "dimension(s) [1] of observation.state never change in the dataset" in caplog.text


def test_a_policy_without_a_state_is_refused() -> None:
    config = make_config(state_in_prompt=True)
    del config.input_features["observation.state"]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"state_in_prompt=True needs an 'observation.state' of shape"):
        VLA0Policy(config)


def test_a_step_saved_by_an_earlier_version_writes_no_state(tiny: PreTrainedTokenizerBase) -> None:
    step = make_vla0_pre_post_processors(make_config(), make_stats())[0].steps[2]
    old = {key: value for key, value in step.get_config().items() if key not in ("state_dim", "n_bins")}
    again = VLA0PromptProcessorStep(**old)
    again.load_state_dict(step.state_dict())
    assert "State" not in tiny.decode(again.encoder.encode("push"))


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def policies() -> dict[bool, tuple[VLA0Policy, Any]]:
    """With and without the state, the same weights."""
    out = {}
    for on in (True, False):
        config = make_config(state_in_prompt=on, n_bins=1000)
        torch.manual_seed(0)
        out[on] = VLA0Policy(config).eval(), make_vla0_pre_post_processors(config, make_stats())[0]
    return out


def test_loss_and_prediction_depend_on_the_state_exactly_if_it_is_written(policies: Any) -> None:
    for on, (policy, pre) in policies.items():
        losses, scores = [], []
        for state in ([-1.0, 0.0], [0.9, 0.0]):
            batch = pre(raw_batch(policy.config, state))
            losses.append(policy(batch)[1]["loss"])
            policy.predict_action_chunk(batch)
            scores.append(policy.last_decode.number_probability)
        assert (losses[0] != losses[1]) == on
        # Another draft rounds otherwise in the last digits.
        assert (float(np.abs(scores[0] / scores[1] - 1).max()) > 1e-3) == on


def test_rows_with_states_of_different_length_do_not_disturb_each_other(policies: Any) -> None:
    policy, pre = policies[True]
    states = [[-1.0, -1.0], [0.9, 0.37], [1.0, -0.2]]
    # The same actions everywhere: a mean over tokens is then the mean over rows.
    actions = make_raw_batch(policy.config, 1)["action"].expand(3, -1, -1)
    together = pre(raw_batch(policy.config, *states, action=actions))
    assert len(set(together[MASK].sum(1).tolist())) == 3
    losses, _ = policy(together, reduction="none")
    chunks = policy.predict_action_chunk(together)
    for row in range(3):
        alone = one_of(together, row)
        real = alone[MASK][0]
        alone[TOKENS], alone[MASK] = alone[TOKENS][:, real], alone[MASK][:, real]
        torch.testing.assert_close(policy(alone)[0], losses[row], rtol=1e-5, atol=1e-6)
        assert torch.equal(policy.predict_action_chunk(alone)[0], chunks[row])


def one_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {key: value[row : row + 1] for key, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("decoder", ["fast", "speculative"])
def test_decoders_agree_while_the_prompt_changes_its_length(decoder: str) -> None:
    episode = [[-1.0, -1.0], [0.99, 0.99], [-0.99, -1.0], [1.0, 1.0], [0.0, 0.0]]
    answers = []
    for name in ("reference", decoder):
        config = make_config(state_in_prompt=True, n_bins=1000, decoder=name)
        torch.manual_seed(0)
        policy = VLA0Policy(config).eval()
        pre, _ = make_vla0_pre_post_processors(config, make_stats())
        for row, state in enumerate(episode):
            batch = pre(raw_batch(config, state, state[::-1]))
            delay = (
                {"inference_delay": 1, "prev_chunk_left_over": torch.full((2, 2), 0.5)} if row == 3 else {}
            )
            answers.append(policy.predict_action_chunk(batch, **delay))
    half = len(episode)
    for reference, other in zip(answers[:half], answers[half:], strict=True):
        assert torch.equal(reference, other)


def test_the_cache_only_grows_while_the_prompt_changes_its_length() -> None:
    config = make_config(state_in_prompt=True, n_bins=99_999)
    policy = VLA0Policy(config).eval()
    pre, _ = make_vla0_pre_post_processors(config, make_stats())
    lengths = [len(pre(raw_batch(config, state))[TOKENS][0]) for state in ([-1.0, -1.0], [0.9, 0.9])]
    assert lengths == [79, 87]
    # Lengths on both sides of a multiple of 128, where caches are rounded up.
    caches = []
    for state, length in (([-1.0, -1.0], 124), ([0.9, 0.9], 148), ([-1.0, -1.0], 124), ([0.9, 0.9], 148)):
        more = "x" * (length - lengths[0])
        policy.predict_action_chunk(pre(raw_batch(config, state, task=["push the button" + more])))
        caches.append(policy.decoder.runner._cache)  # type: ignore[attr-defined]
    assert caches[0] is not caches[1]
    assert caches[1] is caches[2] is caches[3]


def test_the_warm_up_speaks_of_a_state(policies: Any) -> None:
    policy, _ = policies[True]
    grey = grey_batch(policy.config, policy.vlm, 2)
    assert "State: 500 500\nWarm up." in build_tiny_tokenizer().decode(grey[TOKENS][1])
    policy.warm_up(2)


# ---------------------------------------------------------------- LeRobot's commands


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_lerobots_commands_train_save_and_evaluate_with_the_state(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    options = ["--policy.state_in_prompt=true", *(["--peft.method_type=LORA", "--peft.r=4"] if lora else [])]
    train([DEBUG, *train_arguments(dataset_root, tmp_path / "out", steps=2, save=2), *options], monkeypatch)
    checkpoint = tmp_path / "out/checkpoints/000002/pretrained_model"
    stored = json.loads((checkpoint / "config.json").read_text())
    assert stored["state_in_prompt"] is True
    assert stored["normalization_mapping"]["STATE"] == "MIN_MAX"

    seen: list[str] = []
    encode = PromptEncoder.encode
    monkeypatch.setattr(
        PromptEncoder,
        "encode",
        lambda self, task, state=None: seen.append(state) or encode(self, task, state),
    )
    evaluate(
        [
            f"--policy.path={checkpoint}",
            "--env.type=toy",
            "--eval.n_episodes=2",
            "--eval.batch_size=2",
            f"--output_dir={tmp_path / 'eval'}",
        ],
        monkeypatch,
    )
    assert json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 2
    frames = [state for state in seen if state is not None]
    assert len({tuple(state) for state in frames}) > 2  # the dot moves

    policy = VLA0Policy.from_pretrained(checkpoint)
    pre, _ = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    losses = [policy(pre(raw_batch(policy.config, state)))[1]["loss"] for state in ([0.1, 0.5], [0.9, 0.5])]
    assert losses[0] != losses[1]
    with pytest.raises(CheckpointError, match="state_in_prompt is False, the checkpoint has True"):
        evaluate(
            [
                f"--policy.path={checkpoint}",
                "--policy.state_in_prompt=false",
                "--env.type=toy",
                "--eval.n_episodes=1",
                f"--output_dir={tmp_path / 'other'}",
            ],
            monkeypatch,
        )
