"""Questions to a policy: what the pre-processor makes of them, who answers, and that no action ever notices."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.backbones import save_backbone
from helpers.speaking import ANSWER, GOAL, LESSONS, SUBTASK, ask, prompt_step, read_question
from helpers.tiny import CAMERA, make_batch, make_config, make_stats
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.checkpoints.adapters import switched_off
from lerobot_policy_vla0.errors import (
    CameraError,
    ConfigError,
    DecodeError,
    ImageError,
    PromptError,
    QuestionError,
    SharedPolicyError,
)
from lerobot_policy_vla0.observations.batches import QUESTION
from lerobot_policy_vla0.observations.images import ImageSettings, encode_images
from lerobot_policy_vla0.text.question import NEXT_SUBTASK, QUERY_KIND, VQA

WRIST = "observation.images.wrist"
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{pictures}{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def rambling_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose answers are long, senseless and different for every picture."""
    folder = tmp_path_factory.mktemp("rambling") / "base"
    tokenizer = build_tiny_tokenizer()
    save_backbone(folder, tokenizer, len(tokenizer))
    model = plain(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=3.0 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """Return a base model as transformers loads it, with none of this package's changes."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def generated(model: Any, batch: dict[str, Any], policy: VLA0Policy, tokens: int = 40) -> list[int]:
    """Return what transformers' own ``generate`` writes greedily."""
    question = read_question(policy, batch)
    out = model.generate(
        input_ids=question.ids,
        attention_mask=torch.ones_like(question.ids),
        pixel_values=question.pixel_values,
        image_grid_thw=question.grid_thw,
        mm_token_type_ids=(question.ids == policy.vlm.image_token_id).int(),
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=tokens,
    )
    ids: list[int] = out[0, question.ids.shape[1] :].tolist()
    return ids


def policy_on(backbone: Path, **options: Any) -> VLA0Policy:
    return VLA0Policy(make_config(vlm_model_name=str(backbone), **options)).eval()


def adapted(policy: VLA0Policy, **overrides: Any) -> Any:
    """Put an adapter on a policy that changes its actions; return PEFT's model around it."""
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4, **overrides})
    generator = torch.Generator().manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or ("modules_to_save" in name and parameter.ndim > 1):
            parameter.data.normal_(std=0.5, generator=generator)
    return wrapped.eval()


# ------------------------------------------------------------------ what is asked


def test_a_question_is_a_batch_of_its_own_without_the_prompt_of_an_action(speaking_backbone: Path) -> None:
    config = make_config(vlm_model_name=str(speaking_backbone))
    batch = ask(config, VQA, "Why?", task="push the button")
    assert OBS_LANGUAGE_TOKENS not in batch
    assert OBS_LANGUAGE_ATTENTION_MASK not in batch
    tokenizer = build_tiny_tokenizer()
    picture = f"<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>"  # 56x56 pixels
    text = CHAT.format(pictures=picture, text="Why?")
    assert batch[QUESTION].tolist() == [tokenizer.encode(text, add_special_tokens=False)]
    assert batch[QUERY_KIND] == "vqa"


def test_a_camera_that_actions_ignore_is_ignored_by_questions(speaking_backbone: Path) -> None:
    config = make_config(vlm_model_name=str(speaking_backbone))
    config.cameras = [CAMERA]  # what --policy.cameras sets
    policy = VLA0Policy(config).eval()
    surplus = {WRIST: torch.rand(1, 3, 64, 64)}
    asked, acting = ask(policy.config), make_batch(policy.config, 1)
    expected = policy.generate_text(asked)
    assert policy.generate_text({**asked, **surplus}) == expected
    assert torch.equal(
        policy.predict_action_chunk({**acting, **surplus}), policy.predict_action_chunk(acting)
    )


def test_an_action_asked_after_a_question_has_the_prompt_it_always_had(speaking_backbone: Path) -> None:
    config = make_config(vlm_model_name=str(speaking_backbone))
    before = make_batch(config)
    ask(config)
    after = make_batch(config)
    assert torch.equal(before[OBS_LANGUAGE_TOKENS], after[OBS_LANGUAGE_TOKENS])
    assert QUESTION not in after


def test_the_question_of_a_policy_with_state_does_not_say_the_state(speaking_backbone: Path) -> None:
    plain_config = make_config(vlm_model_name=str(speaking_backbone))
    with_state = make_config(vlm_model_name=str(speaking_backbone), state_in_prompt=True)
    assert torch.equal(ask(plain_config)[QUESTION], ask(with_state)[QUESTION])


def test_a_policy_with_relative_actions_can_be_asked(speaking_backbone: Path) -> None:
    config = make_config(
        vlm_model_name=str(speaking_backbone),
        use_relative_actions=True,
        relative_exclude_joints=[],
        action_feature_names=["x", "y"],
    )
    assert VLA0Policy(config).eval().generate_text(ask(config)) == ANSWER


def test_a_step_that_was_saved_before_there_were_questions_can_be_asked(
    tmp_path: Path, speaking_backbone: Path
) -> None:
    from lerobot.processor import PolicyProcessorPipeline

    config = make_config(vlm_model_name=str(speaking_backbone))
    make_vla0_pre_post_processors(config, make_stats())[0].save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    step = next(item for item in saved["steps"] if item["registry_name"] == "vla0_prompt")
    assert set(step["config"]) == {  # what an earlier version wrote; nothing was added for questions
        "system_prompt",
        "image_tokens",
        "pad_token_id",
        "add_vision_id",
        "max_length",
        "state_dim",
        "n_bins",
    }
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, "policy_preprocessor.json")
    again = next(s for s in loaded.steps if type(s).__name__ == "VLA0PromptProcessorStep")
    assert torch.equal(again.questions.encode("Why?"), prompt_step(config).questions.encode("Why?"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (VQA, "  ", "the question is '  ', expected a text that is not empty"),
        (NEXT_SUBTASK, "", "the goal is '', expected"),
        ("caption", "x", "query_kind is 'caption', expected 'vqa' or 'next_subtask'"),
        (
            VQA,
            "x" * 200,
            r"the prompt for question 'x+' has \d+ tokens .*max_prompt_length=200\. Shorten the",
        ),
        (VQA, "<|im_end|>", "question .* contains the chat markup"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_runs(
    speaking_backbone: Path, kind: str, text: str, message: str
) -> None:
    config = make_config(vlm_model_name=str(speaking_backbone), max_prompt_length=200)
    with pytest.raises(PromptError, match=message):
        ask(config, kind, text)


# ------------------------------------------------------------------ what the model sees


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "separate"])
def test_the_pictures_are_whole_whatever_the_actions_see(speaking_backbone: Path, tiled: bool) -> None:
    policy = policy_on(
        speaking_backbone,
        cameras=(CAMERA, WRIST),
        tile_images=tiled,
        crop_box=(0.3, 0.1, 0.8, 0.9),
        crop_ratio=0.5,
    )
    policy.train()  # jitter and random crops belong to training alone
    batch = ask(policy.config)
    pictures = [batch[CAMERA], batch[WRIST]]
    expected, grid = encode_images(
        pictures, ImageSettings((56, 56), crop_ratio=1.0, antialias=True, tile=tiled), None
    )
    question = read_question(policy, batch)
    assert torch.equal(question.pixel_values, expected)
    assert torch.equal(question.grid_thw, grid)
    count = int((question.ids == policy.vlm.image_token_id).sum())
    assert count == 8  # two cameras of 2x2 tokens
    starts = build_tiny_tokenizer().convert_tokens_to_ids("<|vision_start|>")
    assert int((question.ids == starts).sum()) == (1 if tiled else 2)


def test_the_pixels_are_those_of_qwens_own_processor(speaking_backbone: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    policy = policy_on(speaking_backbone, image=56)  # a camera of the size that the model sees
    batch = ask(policy.config)
    picture = torch.randint(0, 256, (3, 56, 56), dtype=torch.uint8)
    batch[CAMERA] = picture.unsqueeze(0)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056})
    expected = processor(images=[picture], return_tensors="pt")
    question = read_question(policy, batch)
    assert torch.equal(question.pixel_values, expected["pixel_values"])
    assert torch.equal(question.grid_thw, expected["image_grid_thw"])


def test_unusable_pictures_are_refused(speaking_backbone: Path) -> None:
    policy = policy_on(speaking_backbone)
    batch = ask(policy.config)
    with pytest.raises(ImageError, match=r"observation\.images\.top: pixel values contain NaN"):
        policy.generate_text({**batch, CAMERA: batch[CAMERA] * float("nan")})
    with pytest.raises(CameraError, match=r"missing: \['observation\.images\.top'\]"):
        policy.generate_text({key: value for key, value in batch.items() if key != CAMERA})
    with pytest.raises(QuestionError, match="the batch has 2 observations, expected one"):
        policy.generate_text({**batch, CAMERA: batch[CAMERA].repeat(2, 1, 1, 1)})


# ------------------------------------------------------------------ who answers


@pytest.mark.parametrize(("kind", "text", "answer"), LESSONS)
def test_the_answer_is_what_the_base_model_learned_to_say(
    speaking_backbone: Path, kind: str, text: str, answer: str
) -> None:
    policy = policy_on(speaking_backbone)
    assert policy.supports_text_generation()
    expected = SUBTASK if kind == NEXT_SUBTASK else answer
    assert policy.generate_text(ask(policy.config, kind, text)) == expected


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_policy_in_bfloat16_answers_too(speaking_backbone: Path, param_dtype: str) -> None:
    policy = policy_on(speaking_backbone, dtype="bfloat16", param_dtype=param_dtype)
    assert policy.generate_text(ask(policy.config)) == ANSWER


@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_that_of_transformers_generate(rambling_backbone: Path, seed: int) -> None:
    policy = policy_on(rambling_backbone)
    batch = ask(policy.config, text="Say anything.", seed=seed)
    expected = generated(plain(rambling_backbone), batch, policy)
    assert policy.generate_text_ids(batch, max_new_tokens=40).tolist() == expected


def test_the_ramblings_are_long_and_differ_between_pictures(rambling_backbone: Path) -> None:
    """Otherwise the comparisons with `generate` would say little."""
    policy = policy_on(rambling_backbone)
    answers = {
        tuple(policy.generate_text_ids(ask(policy.config, seed=s), max_new_tokens=40).tolist())
        for s in range(3)
    }
    assert len(answers) == 3
    assert all(len(answer) > 20 for answer in answers)


@pytest.mark.parametrize("modules", [None, ["merger"]], ids=["adapter", "adapter and a module trained whole"])
def test_with_an_adapter_the_base_answers_token_for_token(
    rambling_backbone: Path, modules: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    policy = policy_on(rambling_backbone)
    options = {} if modules is None else {"full_training_modules": modules}
    wrapped = adapted(policy, **options)
    batch = ask(policy.config, seed=4)
    expected = generated(plain(rambling_backbone), batch, policy)
    on = wrapped.text_log_likelihood(batch, torch.tensor(expected), with_adapter=True)
    off = wrapped.text_log_likelihood(batch, torch.tensor(expected))
    assert on.mean() < off.mean() - 1  # so the adapter matters
    with caplog.at_level(logging.INFO, "lerobot_policy_vla0.modeling_vla0"):
        for _ in range(2):
            wrapped.generate_text(batch, max_new_tokens=40)
    assert wrapped.generate_text_ids(batch, max_new_tokens=40).tolist() == expected
    said = said_by_policy(caplog)
    assert said == [f"{rambling_backbone} answers questions: the adapter is switched off for it"]


def test_an_adapter_loaded_as_lerobot_rollout_does_is_switched_off(
    rambling_backbone: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.rollout.context import _load_pretrained_policy

    folder = save_adapter(policy_on(rambling_backbone), tmp_path / "adapter", rambling_backbone)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    wrapped = _load_pretrained_policy(config)
    assert type(wrapped).__name__ != "VLA0Policy"
    beside = VLA0Policy.from_pretrained(folder, merge_adapter=False)
    assert isinstance(config, VLA0Config)
    batch = ask(config, seed=4)
    expected = generated(plain(rambling_backbone), batch, beside)
    assert wrapped.supports_text_generation()
    for policy in (wrapped, beside):
        assert policy.generate_text_ids(batch, max_new_tokens=40).tolist() == expected
    merged = VLA0Policy.from_pretrained(folder)
    assert merged.generate_text_ids(batch, max_new_tokens=40).tolist() != expected
    actions = make_batch(config)
    torch.testing.assert_close(
        beside.predict_action_chunk(actions), merged.predict_action_chunk(actions), atol=1e-5, rtol=0
    )


def said_by_policy(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the policy logged, without warnings of cut answers; libraries log too if LeRobot has set them up."""
    texts = [
        record.getMessage() for record in caplog.records if record.name.startswith("lerobot_policy_vla0")
    ]
    return [text for text in texts if "cut after" not in text]


def own_weights(caplog: pytest.LogCaptureFixture, policy: VLA0Policy, batch: dict[str, Any]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "lerobot_policy_vla0.modeling_vla0"):
        assert policy.generate_text(batch, max_new_tokens=8) == policy.generate_text(batch, max_new_tokens=8)
    return said_by_policy(caplog)


def test_without_an_off_switch_the_log_says_once_whose_weights_answer(
    rambling_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    adapter = save_adapter(policy_on(rambling_backbone), tmp_path / "adapter", rambling_backbone)
    trained = tmp_path / "trained"
    policy_on(rambling_backbone).save_pretrained(trained)
    in_place = adapted(policy_on(rambling_backbone))
    in_place.merge_adapter()
    batch = ask(in_place.config)
    own = (
        "questions are answered by the policy's own weights; fine-tuning on actions alone may have cost them their "
        "language. `vla0 ask --kept` measures how much is left. Only an adapter (LoRA) on the bare backbone that is "
        "not merged can be switched off."
    )
    assert own_weights(caplog, VLA0Policy.from_pretrained(trained), batch) == [own]
    assert own_weights(caplog, VLA0Policy.from_pretrained(adapter), batch) == [own]  # merged as it is loaded
    assert own_weights(caplog, in_place.base_model.model, batch) == [own]
    beside_trained = adapted(VLA0Policy.from_pretrained(trained)).base_model.model
    base = own.replace(
        "the policy's own weights", "the weights of the policy that the adapter was trained on"
    )
    assert own_weights(caplog, beside_trained, batch) == [base]


def test_an_adapter_merged_in_place_is_not_unmerged_for_an_answer(rambling_backbone: Path) -> None:
    wrapped = adapted(policy_on(rambling_backbone))
    wrapped.merge_adapter()
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    wrapped.generate_text(ask(wrapped.config), max_new_tokens=4)
    vlm = wrapped.base_model.model.vlm
    assert all(layer.merged for layer in vlm.modules() if hasattr(layer, "merged_adapters"))
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())


def test_switching_off_restores_everything_also_after_an_error(rambling_backbone: Path) -> None:
    wrapped = adapted(policy_on(rambling_backbone), full_training_modules=["merger"])
    vlm = wrapped.base_model.model.vlm
    next(p for n, p in vlm.named_parameters() if "lora_A" in n).requires_grad_(False)

    def state() -> list[Any]:
        layers = [m for m in vlm.modules() if hasattr(m, "disable_adapters")]
        return [
            [p.requires_grad for p in vlm.parameters()],
            [layer.disable_adapters for layer in layers if isinstance(layer.disable_adapters, bool)],
        ]

    before = state()
    with pytest.raises(ZeroDivisionError), switched_off(vlm) as off:
        assert off
        assert all(state()[1])
        1 / 0  # noqa: B018
    assert state() == before
    with wrapped.disable_adapter(), switched_off(vlm) as off:  # already off, and left off
        assert off
    assert state()[1] == before[1]
    with switched_off(policy_on(rambling_backbone).vlm) as off:
        assert not off


# ------------------------------------------------------------------ options and refusals


def test_a_question_is_refused_by_all_that_acts_and_an_action_by_generate_text(
    speaking_backbone: Path,
) -> None:
    policy = policy_on(speaking_backbone)
    question, action = ask(policy.config), make_batch(policy.config, batch=1)
    drawn = policy.augmentation.state_dict()
    refusal = r"the batch holds a question \('observation\.vla0_question'\).*Pass it to generate_text"
    calls: list[Callable[[], Any]] = [
        lambda: policy.train().forward(question),
        lambda: policy.eval().forward(question),
        lambda: policy.select_action(question),
        lambda: policy.predict_action_chunk(question),
        lambda: policy.predict_action_chunk(
            question, inference_delay=1, prev_chunk_left_over=torch.ones(3, 2)
        ),
        lambda: policy.number_distributions(question, [[0]]),
    ]
    for call in calls:
        with pytest.raises(QuestionError, match=refusal):
            call()
    policy.select_action(action)
    assert policy.executor.queue
    with pytest.raises(QuestionError, match=refusal):  # also while the queue needs no query
        policy.select_action(question)
    assert policy.augmentation.state_dict().keys() == drawn.keys()
    assert all(torch.equal(value, drawn[name]) for name, value in policy.augmentation.state_dict().items())
    refusal = (
        r"asks for an action, .*expected 'observation\.vla0_question' and no 'observation\.language\.tokens'"
    )
    for batch in (action, {**action, **question}):
        with pytest.raises(QuestionError, match=refusal):
            policy.generate_text(batch)
        with pytest.raises(QuestionError, match=refusal):
            policy.text_log_likelihood(batch, torch.tensor([1]))
    with pytest.raises(QuestionError, match=r"its query_kind is None, expected 'vqa' or 'next_subtask'"):
        policy.generate_text({key: value for key, value in question.items() if key != QUERY_KIND})


def test_the_tiny_backbone_says_what_would_answer() -> None:
    policy = VLA0Policy(make_config()).eval()
    assert not policy.supports_text_generation()
    batch = ask(policy.config)
    for call in (policy.generate_text, policy.generate_text_ids):
        with pytest.raises(
            QuestionError, match=r"the backbone is 'tiny'.*--policy\.vlm_model_name=Qwen/Qwen2\.5-VL-3B"
        ):
            call(batch)
    with pytest.raises(QuestionError, match="the backbone is 'tiny'"):
        policy.text_log_likelihood(batch, torch.tensor([1]))


def test_a_long_answer_is_cut_and_the_log_says_so(
    speaking_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = policy_on(speaking_backbone)
    assert policy.generate_text(ask(policy.config), max_new_tokens=5) == "A red"
    assert "the answer was cut after max_new_tokens=5 tokens" in caplog.text
    caplog.clear()
    # Exactly as long as the answer and its end token.
    assert policy.generate_text(ask(policy.config), max_new_tokens=len(ANSWER) + 1) == ANSWER
    assert caplog.text == ""


def test_an_answer_that_says_nothing_is_an_error(
    speaking_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_on(speaking_backbone)
    end = policy.vlm.tokens.end
    monkeypatch.setattr(policy.vlm.model, "generate", lambda **k: torch.tensor([[*k["input_ids"][0], end]]))
    for kind in (VQA, NEXT_SUBTASK):
        with pytest.raises(QuestionError, match=r"the model's answer says nothing: '' \(1 tokens\)"):
            policy.generate_text(ask(policy.config, kind, "x"))


def test_a_subtask_ends_with_its_line(speaking_backbone: Path) -> None:
    policy = policy_on(speaking_backbone)
    batch = ask(policy.config, NEXT_SUBTASK, GOAL)
    assert policy.vlm.text_of(policy.generate_text_ids(batch)) == f"1. {SUBTASK}\n"


def test_temperature_samples_and_numbers_out_of_range_are_refused(rambling_backbone: Path) -> None:
    policy = policy_on(rambling_backbone)
    batch = ask(policy.config)

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return policy.generate_text_ids(batch, max_new_tokens=12, temperature=5.0).tolist()

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)
    with pytest.raises(ConfigError, match=r"temperature=nan must be finite and at least 0"):
        policy.generate_text(batch, temperature=float("nan"))
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be at least 1"):
        policy.generate_text(batch, max_new_tokens=0)


def test_tokens_are_streamed_as_they_come(
    speaking_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import TextStreamer

    policy = policy_on(speaking_backbone)
    streamer = TextStreamer(policy.vlm.tokenizer, skip_prompt=True, skip_special_tokens=True)
    capsys.readouterr()
    policy.generate_text(ask(policy.config), streamer=streamer)
    assert capsys.readouterr().out == f"{ANSWER}\n"


def test_damaged_weights_are_an_error_and_no_text(speaking_backbone: Path) -> None:
    policy = policy_on(speaking_backbone)
    with torch.no_grad():
        policy.vlm.model.model.language_model.norm.weight.fill_(float("nan"))
    batch = ask(policy.config)
    with pytest.raises(DecodeError, match="no answer in words can be derived"):
        policy.generate_text(batch)
    with pytest.raises(DecodeError, match="no answer in words can be derived"):
        policy.text_log_likelihood(batch, torch.tensor([1, 2]))


def test_the_log_likelihood_is_that_of_the_plain_models_logits(rambling_backbone: Path) -> None:
    policy = policy_on(rambling_backbone)
    batch = ask(policy.config)
    question = read_question(policy, batch)
    answer = policy.generate_text_ids(batch, max_new_tokens=6)
    ids = torch.cat([question.ids, answer.unsqueeze(0)], dim=1)
    with torch.no_grad():
        logits = (
            plain(rambling_backbone)(
                input_ids=ids,
                pixel_values=question.pixel_values,
                image_grid_thw=question.grid_thw,
                mm_token_type_ids=(ids == policy.vlm.image_token_id).int(),
            )
            .logits[0, question.ids.shape[1] - 1 : -1]
            .log_softmax(-1)
        )
    expected = logits.gather(1, answer.unsqueeze(1))[:, 0]
    got = policy.text_log_likelihood(batch, answer)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), answer)  # greedy


# ------------------------------------------------------------------ what an episode notices: nothing

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": nullcontext,
    "inference mode": torch.inference_mode,
}


def episode(
    policy: Any, mode: Callable[[], AbstractContextManager[Any]], *, questions: bool
) -> Iterator[Tensor]:
    """Drive a policy through sync and real-time control, with questions between all calls or without."""
    vlm, config = policy.vlm, policy.config

    def question(seed: int) -> None:
        if not questions:
            return
        report, random = policy.last_decode, torch.get_rng_state()
        grads = [p.requires_grad for p in vlm.parameters()]
        with mode():
            for kind, text in ((NEXT_SUBTASK, GOAL), (VQA, "Say anything.")):
                policy.generate_text(ask(config, kind, text, seed=seed), max_new_tokens=6)
        assert policy.last_decode is report
        assert torch.equal(torch.get_rng_state(), random)
        assert [p.requires_grad for p in vlm.parameters()] == grads

    policy.reset()
    question(0)
    for step in range(7):  # a query every second step, each beside the chunk before it
        with mode():
            yield policy.select_action(make_batch(config, batch=1, seed=step))
        question(step)
    policy.reset()
    left: Tensor | None = None
    for step in range(4):
        with mode():
            chunk = policy.predict_action_chunk(
                make_batch(config, batch=1, seed=step), inference_delay=1, prev_chunk_left_over=left
            )
        yield chunk
        left = chunk[0, 1:]
        question(step)
    report = policy.last_decode
    yield torch.tensor([trace.symbols for trace in report.traces])
    yield torch.tensor(report.passes)


def asked_and_not_asked(
    backbone: Path, mode: str, *, decoder: str, lora: bool, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what two equal policies answer along one episode: to the second one questions are put in between."""

    def build() -> Any:
        torch.manual_seed(0)
        policy = policy_on(
            backbone,
            chunk_size=4,
            n_action_steps=2,
            ensemble_n_chunks=2,
            max_action_step=0.2,
            decoder=decoder,
            device=device,
            **({"draft_width": 8} if decoder == "speculative" else {}),
        )
        return (adapted(policy) if lora else policy).to(device)

    return (
        list(episode(build(), MODES[mode], questions=False)),
        list(episode(build(), MODES[mode], questions=True)),
    )


@pytest.mark.parametrize(
    ("decoder", "lora", "mode"),
    [
        ("reference", False, "inference mode"),
        ("reference", True, "gradients"),
        ("fast", False, "gradients"),
        ("fast", True, "inference mode"),
        ("speculative", False, "inference mode"),
        ("speculative", True, "gradients"),
        ("speculative", True, "inference mode"),
    ],
)
def test_no_action_notices_a_question(speaking_backbone: Path, decoder: str, lora: bool, mode: str) -> None:
    alone, asked = asked_and_not_asked(speaking_backbone, mode, decoder=decoder, lora=lora)
    assert len(alone) == 13
    for one, other in zip(alone, asked, strict=True):
        assert torch.equal(one, other)
    assert len({tuple(action.flatten().tolist()) for action in alone[:7]}) > 1  # not all the same anyway


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [False, True], ids=["own weights", "adapter"])
def test_captured_passes_do_not_notice_a_question(speaking_backbone: Path, lora: bool) -> None:
    alone, asked = asked_and_not_asked(
        speaking_backbone, "inference mode", decoder="speculative", lora=lora, device="cuda"
    )
    for one, other in zip(alone, asked, strict=True):
        assert torch.equal(one, other)


def test_training_goes_on_as_if_nothing_had_been_asked(speaking_backbone: Path) -> None:
    def losses(questions: bool) -> list[float]:
        torch.manual_seed(0)
        policy = adapted(policy_on(speaking_backbone, action_mask_max_ratio=0.4)).train()
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
        result = []
        for step in range(3):
            if questions:
                policy.generate_text(ask(policy.config), max_new_tokens=4)
                assert policy.training and policy.base_model.model.training
            loss, _ = policy(make_batch(policy.config, seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.append(loss.item())
        return result

    assert losses(True) == losses(False)


def test_a_question_takes_turns_with_actions_but_belongs_to_no_episode(speaking_backbone: Path) -> None:
    policy = policy_on(speaking_backbone)
    question, action = ask(policy.config), make_batch(policy.config, batch=1)
    policy.select_action(action)
    elsewhere: list[Any] = []

    def call() -> None:
        try:
            elsewhere.append(policy.generate_text(question))
        except SharedPolicyError as error:
            elsewhere.append(error)

    def in_a_thread() -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    in_a_thread()
    assert elsewhere == [ANSWER]
    policy.select_action(action)  # the episode is still this thread's
    with policy._guard.exclusive():  # a query of actions is running
        in_a_thread()
    assert isinstance(elsewhere[1], SharedPolicyError)
