"""decoding/engine.py: a policy without weights does what the same policy with weights does, or raises."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engine_server import Engine, serving
from helpers.tiny import CAMERA, make_batch, make_config, make_raw_batch, make_restless, make_stats
from helpers.waiting import free_port
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.described import DescribedVLM
from lerobot_policy_vla0.checkpoints import files
from lerobot_policy_vla0.decoding.engine import EngineDecoder
from lerobot_policy_vla0.decoding.engine_client import EngineClient
from lerobot_policy_vla0.errors import CheckpointError, ConfigError, EngineError, Vla0Error
from lerobot_policy_vla0.observations.images import make_pictures
from lerobot_policy_vla0.text.grammar import AnswerGrammar
from lerobot_policy_vla0.text.grammar_languages import answer_gbnf, answer_regex
from lerobot_policy_vla0.text.prompt import Chat, PromptEncoder, PromptSettings
from lerobot_policy_vla0.tools.loading import load_config

WRIST = "observation.images.wrist"
OPTIONS: dict[str, Any] = {"n_bins": 1000, "n_action_steps": 1}
#: Nobody listens on the discard port.
NOWHERE = "http://127.0.0.1:9/v1"

Pair = tuple[VLA0Policy, VLA0Policy, Engine]


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """Returns a function that makes a policy with weights, the same one without, and the server between them."""
    with ExitStack() as servers:

        def make(owned_by: str = "vllm", engine: dict[str, Any] | None = None, **options: Any) -> Pair:
            torch.manual_seed(0)
            with_weights = make_restless(VLA0Policy(make_config(**{**OPTIONS, **options})))
            served, address = servers.enter_context(serving(with_weights))
            served.owned_by = owned_by
            config = make_config(**{**OPTIONS, **options}, engine=address, **(engine or {}))
            return with_weights, VLA0Policy(config).eval(), served

        yield make


def different_batch(config: Any, rows: int, seed: int = 0) -> dict[str, Any]:
    """A batch whose prompts differ in length, and whose states differ."""
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(config.action_dim))
    raw = make_raw_batch(config, rows, seed)
    raw["task"] = [f"push {'the red button ' * row}é" for row in range(rows)]
    raw["observation.state"] = torch.linspace(-1, 1, rows * config.action_dim).view(rows, -1)
    return dict(preprocess(raw))


# ---------------------------------------------------------------- the same answers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cameras": (CAMERA, WRIST)},
        {"cameras": (CAMERA, WRIST), "tile_images": False, "add_vision_id": True},
        {"state_in_prompt": True, "repetition_penalty": 1.1},
    ],
    ids=["one camera", "tiled", "pictures with numbers", "state and penalty"],
)
def test_every_row_is_what_the_policy_with_weights_answers(
    pair: Callable[..., Pair], options: dict[str, Any]
) -> None:
    """Chunks equal to the bit; and the number probabilities, which come from the server's log-probabilities."""
    with_weights, robot, engine = pair(**options)
    batch = different_batch(with_weights.config, 3)
    chunk = robot.predict_action_chunk(batch)
    assert torch.equal(chunk, with_weights.predict_action_chunk(batch))
    assert len(torch.unique(chunk)) > 12  # not one answer for all
    ours, theirs = robot.last_decode, with_weights.last_decode
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours.number_probability, theirs.number_probability, rtol=1e-3)
    np.testing.assert_allclose(ours.leading_digit_entropy, theirs.leading_digit_entropy, rtol=1e-3, atol=1e-6)
    assert ours.decoder == "engine (vLLM)"
    assert ours.passes == max(len(trace.symbols) for trace in ours.traces)
    assert [trace.symbols for trace in ours.traces] == [trace.symbols for trace in theirs.traces]
    assert [ours.bins(row) for row in range(3)] == [theirs.bins(row) for row in range(3)]
    assert len(engine.asked) == 3


def test_the_server_is_sent_the_chat_the_pictures_and_the_grammar(pair: Callable[..., Pair]) -> None:
    with_weights, robot, engine = pair(cameras=(CAMERA, WRIST))
    batch = make_batch(robot.config, 1)
    robot.predict_action_chunk(batch)
    body = engine.asked[0]
    system, user = body.pop("messages")
    assert system == {"role": "system", "content": "6 integers 0-1000"}
    picture, text = user["content"]
    assert text == {"type": "text", "text": "push the button"}
    assert body == {
        "model": "vla0",
        "max_tokens": 6 * 5 + 1,
        "temperature": 0.0,
        "repetition_penalty": 1.0,  # a server may have another default
        "logprobs": True,
        "top_logprobs": 20,
        "structured_outputs": {"regex": answer_regex(1000, 6)},
    }
    # Without loss: the pixels that the policy with weights sees.
    images = [batch[key] for key in robot.config.camera_keys]
    (expected,) = make_pictures(images, with_weights.image_settings, None)
    written = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert torch.equal(
        torch.from_numpy(np.array(Image.open(io.BytesIO(written)))), expected[0].permute(1, 2, 0)
    )


@pytest.mark.parametrize("owned_by", ["vllm", "sglang", "llamacpp"])
def test_an_answer_goes_on_from_committed_steps(pair: Callable[..., Pair], owned_by: str) -> None:
    """Real-time chunking: the answer has begun, and the server writes the rest."""
    with_weights, robot, engine = pair(owned_by)
    batch = different_batch(robot.config, 2)
    left = with_weights.predict_action_chunk(batch)[:, 1:]
    expected = with_weights.predict_action_chunk(batch, inference_delay=1, prev_chunk_left_over=left)
    chunk = robot.predict_action_chunk(batch, inference_delay=1, prev_chunk_left_over=left)
    assert torch.equal(chunk, expected)
    assert torch.equal(chunk[:, :1], left[:, :1])
    report, other = robot.last_decode, with_weights.last_decode
    assert report is not None
    assert other is not None
    np.testing.assert_allclose(report.number_probability, other.number_probability, rtol=1e-3)
    assert (report.number_probability[:, 0] == 1).all()
    assert report.committed == other.committed
    body = engine.asked[0]
    begun = body["messages"][2]
    assert begun == {"role": "assistant", "content": " ".join(map(str, report.bins(0)[:2]))}
    grammar = {
        "vllm": ("structured_outputs", {"regex": answer_regex(1000, 4, begun=True)}),
        "sglang": ("regex", answer_regex(1000, 4, begun=True)),
        "llamacpp": ("grammar", answer_gbnf(1000, 4, begun=True)),
    }[owned_by]
    assert body[grammar[0]] == grammar[1]
    goes_on = {"add_generation_prompt": False, "continue_final_message": True}
    assert {key: body[key] for key in goes_on if key in body} == ({} if owned_by == "llamacpp" else goes_on)


def test_nothing_is_asked_if_every_step_is_committed(pair: Callable[..., Pair]) -> None:
    with_weights, robot, engine = pair()
    batch = make_batch(robot.config, 1)
    left = with_weights.predict_action_chunk(batch)
    assert torch.equal(robot.predict_action_chunk(batch, inference_delay=3, prev_chunk_left_over=left), left)
    assert engine.asked == []
    report = robot.last_decode
    assert report is not None
    assert (report.passes, report.number_probability.min()) == (0, 1.0)


def test_queue_averaging_and_limits_are_the_policys_own(pair: Callable[..., Pair]) -> None:
    options = {"ensemble_n_chunks": 2, "ensemble_old_weight": 0.5, "max_action_step": 0.2}
    with_weights, robot, engine = pair(**options)
    for seed in range(5):
        batch = make_batch(robot.config, 2, seed)
        assert torch.equal(robot.select_action(batch), with_weights.select_action(batch))
    assert len(engine.asked) == 10


def test_sampling_follows_torchs_seed(pair: Callable[..., Pair]) -> None:
    """Each row has a seed of its own, and nothing but the temperature shapes the distribution."""
    _, robot, engine = pair(temperature=0.7)
    batch = make_batch(robot.config, 2)
    chunks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        chunks.append(robot.predict_action_chunk(batch))
    assert torch.equal(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])
    seeds = [body["seed"] for body in engine.asked]
    assert len(set(seeds[:2])) == 2
    body = engine.asked[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 1.0, -1, 0.0)


@pytest.mark.parametrize(
    ("fault", "known"), [("no log-probabilities", False), ("no end among the tokens", True)]
)
def test_what_the_server_does_not_tell_is_not_claimed(
    pair: Callable[..., Pair], fault: str, known: bool
) -> None:
    """The actions are the same; probabilities are NaN, not 1."""
    with_weights, robot, engine = pair(n_bins=100)
    engine.fault = fault
    batch = make_batch(robot.config, 1)
    assert torch.equal(robot.predict_action_chunk(batch), with_weights.predict_action_chunk(batch))
    report, other = robot.last_decode, with_weights.last_decode
    assert report is not None
    assert other is not None
    found, expected = (each.number_probability.flatten() for each in (report, other))
    if known:  # all but the last number, whose end was a choice
        np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-3)
    else:
        assert np.isnan(found).all()
        assert np.isnan(report.leading_digit_entropy).all()
    assert np.isnan(found[-1])


@pytest.fixture(scope="module")
def real_tokenizer(qwen_tokenizer: Any) -> tuple[EngineDecoder, PromptEncoder]:
    """What writes prompts with the real tokenizer, and what reads them."""
    sizes = SimpleNamespace(vision_config=SimpleNamespace(patch_size=14, spatial_merge_size=2))
    vlm = DescribedVLM(sizes, qwen_tokenizer, NOWHERE)
    grammar = AnswerGrammar(n_bins=1000, n_numbers=2, tokens=vlm.tokens)
    decoder = EngineDecoder(EngineClient(NOWHERE, None, 1.0), vlm, grammar, shape=(1, 2))
    encoder = PromptEncoder(
        qwen_tokenizer.backend_tokenizer,
        PromptSettings("S", (6, 6), vlm.tokens.pad, add_vision_id=True, state_dim=2, n_bins=1000),
    )
    return decoder, encoder


@given(task=st.text(max_size=30).filter(lambda text: "<|" not in text))
@settings(max_examples=50)
def test_the_real_tokenizer_reads_the_prompt_back(
    real_tokenizer: tuple[EngineDecoder, PromptEncoder], task: str
) -> None:
    """Whatever the task says, the server reads the ids that the model was trained on: its words in Unicode's NFC."""
    decoder, encoder = real_tokenizer
    chat = decoder._chat(encoder.encode(task, [7, 1000]))
    words = unicodedata.normalize("NFC", task)
    assert chat == Chat("S", ("Picture 1: ", None, "Picture 2: ", None, f"State: 7 1000\n{words}"))


# ---------------------------------------------------------------- never a motion


REFUSED = {
    "words": (
        "{address} answered 'I would move the arm to the left.' (finish_reason 'stop'), expected 6 integers in "
        "[0, 1000] and 'stop'. The server ignores the grammar (structured_outputs), or cut the answer off. Nothing was "
        "sent to the robot. Check that 'vla0' is this policy, as `vla0 export` wrote it."
    ),
    "one number less": "expected 6 integers in [0, 1000] and 'stop'. The server ignores the grammar",
    "cut off": "(finish_reason 'length'), expected 6 integers in [0, 1000] and 'stop'. The server ignores",
    "another prompt": (
        "the prompt has {more} tokens at {address} and {tokens} here, so 'vla0' has another chat template, tokenizer "
        "or picture size. Serve the folder that `vla0 export` wrote of this policy."
    ),
    "drops": "{address}/chat/completions cannot be reached (",
    "status 500": (
        '{address}/chat/completions answered with status 500: \'{{"error": {{"message": "CUDA out of memory", '
        '"code": 500}}}}\'. Check its log, and that it serves the folder that `vla0 export` wrote.'
    ),
    "status 401": (
        '{address}/chat/completions answered with status 401: \'{{"error": "Unauthorized"}}\'. Put its key into the '
        "environment variable VLA0_ENGINE_API_KEY."
    ),
    "no choices": "{address} answered \"{{'choices': []}}\", which is no chat completion (IndexError(",
    "not JSON": (
        "{address}/chat/completions answered '<html>hello</html>', which is no JSON object. Is it an OpenAI-compatible "
        "server?"
    ),
    "slow": (
        "{address} did not answer within engine_timeout_s=0.5. Nothing was sent to the robot. Is the server "
        "overloaded? Raise --policy.engine_timeout_s if it is slower than that."
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_wrong_answer_is_an_error_and_the_next_query_starts_afresh(
    pair: Callable[..., Pair], fault: str
) -> None:
    with_weights, robot, engine = pair(engine={"engine_timeout_s": 0.5} if fault == "slow" else None)
    batch = make_batch(robot.config, 1)
    engine.fault = fault
    with pytest.raises(EngineError) as error:
        robot.select_action(batch)
    tokens = batch["observation.language.tokens"].shape[1]
    expected = REFUSED[fault].format(address=robot.config.engine, tokens=tokens, more=tokens + 7)
    assert expected in str(error.value)
    if expected.startswith(str(robot.config.engine)) and expected.endswith("."):
        assert str(error.value) == expected
    assert not robot.executor.queue
    engine.fault = None
    engine.waiting.set()
    robot.config.engine_timeout_s = 10.0
    robot._decoder.client._http.timeout = robot._decoder.client.timeout_s = 10.0  # type: ignore[union-attr]
    assert torch.equal(robot.select_action(batch), with_weights.select_action(batch))


def test_a_batch_is_used_whole_or_not_at_all(pair: Callable[..., Pair]) -> None:
    _, robot, engine = pair()
    engine.fault = "words"
    with pytest.raises(EngineError, match=r"^row 0: http://.* answered 'I would move"):
        robot.select_action(make_batch(robot.config, 3))
    assert not robot.executor.queue


def test_a_connection_that_the_server_closed_is_opened_again(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    with_weights, robot, engine = pair()
    batch = make_batch(robot.config, 1)
    engine.fault = "drops once"
    assert torch.equal(robot.select_action(batch), with_weights.select_action(batch))
    assert "closed the connection" in caplog.text
    assert len(engine.asked) == 2


def test_an_answer_that_begins_again_instead_of_going_on_is_refused(pair: Callable[..., Pair]) -> None:
    with_weights, robot, engine = pair()
    batch = make_batch(robot.config, 1)
    left = with_weights.predict_action_chunk(batch)
    engine.fault = "begins again"
    with pytest.raises(EngineError, match=r"expected 4 integers in \[0, 1000\]"):
        robot.predict_action_chunk(batch, inference_delay=1, prev_chunk_left_over=left)


# ---------------------------------------------------------------- which server, which model


def test_the_first_reset_says_which_server_it_is(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA0_ENGINE_API_KEY", "secret")
    _, robot, engine = pair()
    robot._cold = True  # as after loading
    with caplog.at_level(logging.INFO):
        robot.reset()
    assert f"engine: vLLM at {robot.config.engine} serves 'vla0'" in caplog.text
    assert "secret" not in caplog.text
    assert engine.keys == ["Bearer secret"]
    assert robot.decoder.name == "engine"


def test_an_unknown_server_is_only_checked(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    with_weights, robot, engine = pair("somebody")
    batch = make_batch(robot.config, 1)
    chunk = robot.predict_action_chunk(batch)
    assert torch.equal(chunk, with_weights.predict_action_chunk(batch))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"engine: {robot.config.engine} is none of vLLM, SGLang, llama.cpp, so it gets no grammar. Its answers are "
        "only checked, and one that is no action is an error."
    ]
    assert engine.asked[0].keys() == {
        "model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs"
    }  # fmt: skip
    with pytest.raises(
        EngineError, match=r"cannot continue an answer that has begun, which Real-Time Chunking"
    ):
        robot.predict_action_chunk(batch, inference_delay=1, prev_chunk_left_over=chunk)
    engine.fault = "words"
    with pytest.raises(EngineError, match="It got no grammar, because the server is not known"):
        robot.predict_action_chunk(batch)


@pytest.mark.parametrize("owned_by", ["sglang", "llamacpp", "somebody"])
def test_a_penalty_that_means_something_else_is_refused(pair: Callable[..., Pair], owned_by: str) -> None:
    _, robot, engine = pair(owned_by, repetition_penalty=1.05)
    with pytest.raises(EngineError) as error:
        robot.select_action(make_batch(robot.config, 1))
    assert "repetition_penalty=1.05 is transformers' penalty, which" in str(error.value)
    assert "does not have. Use vLLM, or --policy.repetition_penalty=1.0." in str(error.value)
    assert engine.asked == []


@pytest.mark.parametrize(
    ("models", "wanted", "message"),
    [
        (
            ("a", "b"),
            None,
            "serves ['a', 'b'], and engine_model is not set. Choose one with --policy.engine_model.",
        ),
        ((), None, "serves [], and engine_model is not set."),
        (
            ("a",),
            "vla0",
            "does not serve engine_model='vla0'; it serves ['a']. Another policy may be served there.",
        ),
    ],
)
def test_another_model_is_not_asked(
    pair: Callable[..., Pair], models: tuple[str, ...], wanted: str | None, message: str
) -> None:
    _, robot, engine = pair(engine={"engine_model": wanted})
    engine.models = models
    with pytest.raises(EngineError, match=re.escape(message)):
        robot.select_action(make_batch(robot.config, 1))
    assert engine.asked == []


def test_a_server_that_lists_no_models_is_asked_for_the_one_that_is_named(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    """`transformers serve` lists its cache, and not the folder that it serves."""
    _, robot, engine = pair("somebody", engine={"engine_model": "served"})
    engine.models = ()
    robot.predict_action_chunk(make_batch(robot.config, 1))
    assert engine.asked[0]["model"] == "served"
    assert "lists no models; it is asked for 'served' all the same" in caplog.text
    assert "so it gets no grammar" in caplog.text


def test_a_named_model_is_asked_and_looked_for_again_after_an_error(pair: Callable[..., Pair]) -> None:
    """A server that was started again may serve something else."""
    _, robot, engine = pair(engine={"engine_model": "b"})
    engine.models = ("a", "b")
    batch = make_batch(robot.config, 1)
    robot.predict_action_chunk(batch)
    assert engine.asked[0]["model"] == "b"
    engine.models, engine.fault = ("a",), "status 500"
    with pytest.raises(EngineError, match="status 500"):
        robot.predict_action_chunk(batch)
    engine.fault = None
    with pytest.raises(EngineError, match=r"does not serve engine_model='b'"):
        robot.predict_action_chunk(batch)


def test_nobody_there_and_another_program_there(pair: Callable[..., Pair]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    lost = VLA0Policy(make_config(engine=nowhere)).eval()
    batch = make_batch(lost.config, 1)
    with pytest.raises(EngineError) as error:
        lost.select_action(batch)
    assert str(error.value).startswith(f"{nowhere}/models cannot be reached (ConnectError: ")
    assert str(error.value).endswith(
        "Is the server running, and does the address end like http://host:port/v1?"
    )
    _, robot, engine = pair()
    engine.fault = "another program"
    with pytest.raises(EngineError, match=r"/models answered '<html>hello</html>', which is no JSON object"):
        robot.select_action(make_batch(robot.config, 1))
    wrong_path = VLA0Policy(make_config(engine=str(robot.config.engine).removesuffix("/v1"))).eval()
    with pytest.raises(EngineError, match=r"/models answered with status 404"):
        wrong_path.select_action(batch)


# ---------------------------------------------------------------- options, folders, what needs weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "localhost:8000"},
            "engine='localhost:8000' must be an address such as http://localhost:8000/v1",
        ),
        ({"engine": "http://me:secret@host/v1"}, "without a user's name. A key for the server goes into the"),
        (
            {"engine_model": "m"},
            "engine_model='m' has no effect without engine. Give --policy.engine=http://...",
        ),
        ({"engine_timeout_s": 3.0}, "engine_timeout_s=3.0 has no effect without engine."),
        (
            {"engine": NOWHERE, "engine_timeout_s": 0},
            "engine_timeout_s=0 must be finite and above 0 seconds.",
        ),
        (
            {"engine": NOWHERE, "decoder": "fast", "quantization": "nf4"},
            f"{{'decoder': 'fast', 'quantization': 'nf4'}} has no effect with engine='{NOWHERE}': the server decodes, "
            "with weights of its own. Leave it out.",
        ),
        ({"engine": NOWHERE, "draft_width": 8}, "{'draft_width': 8} has no effect with engine="),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_config(**options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "policy"
    torch.manual_seed(0)
    config = make_config(**OPTIONS)
    make_restless(VLA0Policy(config)).save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(config, make_stats()):
        pipeline.save_pretrained(folder)
    return folder


def test_a_folder_without_weights_is_enough(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "robot"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    with serving(checkpoint) as (engine, address):
        robot = VLA0Policy.from_pretrained(folder, config=load_config(folder, [f"--engine={address}"]))
        assert sum(1 for _ in robot.parameters()) == 0
        robot.reset()  # warms up
        assert len(engine.asked) == 1
        batch = make_batch(robot.config, 1)
        assert torch.equal(robot.select_action(batch), engine.policy.select_action(batch))
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor"):
        VLA0Policy.from_pretrained(folder)


def test_weights_are_not_downloaded_for_an_engine(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    patterns = []

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        patterns.append(allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr(files, "snapshot_download", download)
    config = load_config("me/policy", [f"--engine={NOWHERE}"])
    VLA0Policy.from_pretrained("me/policy", config=config)
    assert patterns == [["*.json", "policy_*.safetensors"]] * 2
    VLA0Policy.from_pretrained("me/policy")
    assert patterns[2] == ["*.json", "*.safetensors"]


def test_an_adapter_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(CheckpointError) as error:
        VLA0Policy.from_pretrained(folder, config=load_config(folder, [f"--engine={NOWHERE}"]))
    assert str(error.value) == (
        f"{folder} is an adapter, whose backbone is described elsewhere, and engine={NOWHERE!r} needs the description. "
        "Give --policy.path the folder robot/ of what `vla0 export` wrote."
    )


def test_what_needs_weights_says_where_they_are(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config(engine=NOWHERE))
    batch = make_batch(policy.config, 1)
    calls: list[Callable[[], Any]] = [
        lambda: policy.get_optim_params(),
        lambda: policy.forward(batch),
        lambda: policy.save_pretrained(tmp_path / "saved"),
        lambda: policy.generate_text(batch),
        lambda: policy.number_distributions(batch, []),
        lambda: policy.wrap_with_peft(),
    ]
    for call in calls:
        with pytest.raises(Vla0Error, match=re.escape(NOWHERE)):
            call()
    assert not policy.supports_text_generation()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
