"""prompt.py: literal ids written out by hand, Qwen's own chat template, and transformers' rotary positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.errors import ConfigError, PromptError, TokenizerError
from lerobot_policy_vla0.text.codec import IGNORE_INDEX, ActionCodec, ActionTokens
from lerobot_policy_vla0.text.prompt import (
    SYSTEM_PROMPT,
    PromptEncoder,
    PromptSettings,
    chat_text,
    format_system_prompt,
    read_chat,
    rope_positions,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

LIBERO = format_system_prompt(SYSTEM_PROMPT, chunk_size=8, action_dim=7, n_bins=1000)


def encoder_of(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PromptEncoder:
    options: dict[str, Any] = {
        "system_prompt": "S",
        "image_tokens": (2,),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return PromptEncoder(tokenizer.backend_tokenizer, PromptSettings(**{**options, **settings}))


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return build_tiny_tokenizer()


# ---------------------------------------------------------------- the system message


def test_the_system_message_is_the_papers_word_for_word() -> None:
    assert LIBERO == (
        "Analyze the input image and predict robot actions for the next 8 timesteps. Each action has 7 dimensions. "
        "Output a single sequence of 56 integers (0-1000 each), representing the 8 timesteps sequentially. "
        "Provide only space separated numbers. Nothing else."
    )


def test_a_system_prompt_may_use_any_of_the_fields_and_literal_braces() -> None:
    assert format_system_prompt("no field", chunk_size=8, action_dim=7, n_bins=10) == "no field"
    assert format_system_prompt("{{{B}}} {N}", chunk_size=8, action_dim=7, n_bins=10) == "{10} 56"


@pytest.mark.parametrize("template", ["{T} steps", "{} steps", "{", "{H", "{H.x}", "{H[0]}", "{H:q}"])
def test_a_system_prompt_with_an_unknown_field_is_refused(template: str) -> None:
    with pytest.raises(ConfigError) as error:
        format_system_prompt(template, chunk_size=8, action_dim=7, n_bins=1000)
    assert f"system_prompt {template!r} has a field that cannot be filled (" in str(error.value)
    assert str(error.value).endswith(
        "Known fields: {H} (chunk_size), {D} (action_dim), {N} (H*D), {B} (n_bins); write {{ and }} for literal "
        "braces."
    )


@pytest.mark.parametrize(
    "markup", ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"]
)
def test_a_system_prompt_with_chat_markup_is_refused(tiny: PreTrainedTokenizerBase, markup: str) -> None:
    with pytest.raises(ConfigError) as error:
        encoder_of(tiny, system_prompt=f"Look {markup} here")
    assert str(error.value) == (
        f"system_prompt 'Look {markup} here' contains the chat markup {markup!r}, which would change the layout of "
        "the prompt. Remove it from system_prompt."
    )


# ---------------------------------------------------------------- as messages, for servers


#: Texts that may hold anything but markup, as the encoder demands.
WORDS = st.text(max_size=20).filter(lambda text: "<|" not in text)


@given(
    system=WORDS,
    task=WORDS,
    images=st.integers(0, 3),
    numbered=st.booleans(),
    state=st.none() | st.lists(st.integers(0, 1000), min_size=1, max_size=4),
)
def test_messages_are_found_again_in_the_prompt(
    system: str, task: str, images: int, numbered: bool, state: list[int] | None
) -> None:
    chat = read_chat(chat_text(system, task, images, add_vision_id=numbered, state=state))
    assert chat.system == system
    expected: list[str | None] = []
    for number in range(1, images + 1):
        expected += [f"Picture {number}: ", None] if numbered else [None]
    line = "" if state is None else f"State: {' '.join(map(str, state))}\n"
    assert list(chat.parts) == expected + [line + task] * bool(line + task)


@pytest.mark.parametrize("text", ["push", chat_text("S", "push", 1) + "5", chat_text("S", "push", 1)[1:]])
def test_a_prompt_of_another_layout_is_refused(text: str) -> None:
    with pytest.raises(PromptError) as error:
        read_chat(text)
    assert str(error.value) == f"the prompt {text!r} has not the layout that this package writes."


# ---------------------------------------------------------------- literal ids

# H=1, D=2, B=10, task "push it", one image of 28 x 56 pixels = 2 image tokens. Written out by hand from the
# vocabulary (tokenizer.json); nothing here was produced by the code under test.
PROMPT_BY_HAND: list[tuple[str, int]] = [
    ("<|im_start|>", 151644), ("system", 8948), ("\n", 198),
    ("An", 2082), ("alyze", 55856), (" the", 279), (" input", 1946), (" image", 2168), (" and", 323),
    (" predict", 7023), (" robot", 12305), (" actions", 6168), (" for", 369), (" the", 279), (" next", 1790),
    (" ", 220), ("1", 16), (" t", 259), ("imesteps", 76632), (".", 13),
    (" Each", 8886), (" action", 1917), (" has", 702), (" ", 220), ("2", 17), (" dimensions", 15336), (".", 13),
    (" Output", 9258), (" a", 264), (" single", 3175), (" sequence", 8500), (" of", 315), (" ", 220), ("2", 17),
    (" integers", 25780), (" (", 320), ("0", 15), ("-", 12), ("1", 16), ("0", 15), (" each", 1817), ("),", 701),
    (" representing", 14064), (" the", 279), (" ", 220), ("1", 16), (" t", 259), ("imesteps", 76632),
    (" sequentially", 94559), (".", 13),
    (" Provide", 39565), (" only", 1172), (" space", 3550), (" separated", 18663), (" numbers", 5109), (".", 13),
    (" Nothing", 12064), (" else", 770), (".", 13), ("<|im_end|>", 151645), ("\n", 198),
    ("<|im_start|>", 151644), ("user", 872), ("\n", 198),
    ("<|vision_start|>", 151652), ("<|image_pad|>", 151655), ("<|image_pad|>", 151655), ("<|vision_end|>", 151653),
    ("push", 9077), (" it", 432), ("<|im_end|>", 151645), ("\n", 198),
    ("<|im_start|>", 151644), ("assistant", 77091), ("\n", 198),
]  # fmt: skip
# The answer "0 10": columns 75 to 80.
ANSWER_BY_HAND: list[tuple[str, int]] = [
    ("0", 15), (" ", 220), ("1", 16), ("0", 15), ("<|im_end|>", 151645), ("\n", 198)
]  # fmt: skip
SYSTEM_BY_HAND = (
    "Analyze the input image and predict robot actions for the next 1 timesteps. Each action has 2 dimensions. "
    "Output a single sequence of 2 integers (0-10 each), representing the 1 timesteps sequentially. "
    "Provide only space separated numbers. Nothing else."
)


def test_the_hand_written_pieces_spell_the_conversation() -> None:
    assert "".join(piece for piece, _ in PROMPT_BY_HAND) == (
        f"<|im_start|>system\n{SYSTEM_BY_HAND}<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>push it<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "".join(piece for piece, _ in ANSWER_BY_HAND) == "0 10<|im_end|>\n"


def test_prompt_and_labels_are_the_ids_written_out_by_hand(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    system = format_system_prompt(SYSTEM_PROMPT, chunk_size=1, action_dim=2, n_bins=10)
    prompt = encoder_of(qwen_tokenizer, system_prompt=system).encode("push it")
    assert prompt.dtype == torch.int64
    assert prompt.tolist() == [id_ for _, id_ in PROMPT_BY_HAND]

    codec = ActionCodec(ActionTokens.from_tokenizer(qwen_tokenizer), n_bins=10, chunk_size=1, action_dim=2)
    chunk = codec.encode_bins(torch.tensor([[[0, 10]]]))
    ids = torch.cat([prompt, chunk.ids[0]])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[len(prompt) :] = chunk.ids[0].masked_fill(~chunk.is_token[0], IGNORE_INDEX)
    assert ids.tolist() == [id_ for _, id_ in [*PROMPT_BY_HAND, *ANSWER_BY_HAND]]
    assert labels.tolist() == [*[-100] * 75, 15, 220, 16, 15, 151645, 198]
    # The state at the newline after "assistant" (column 74) predicts the first digit.
    assert ids[74] == 198
    assert (labels != IGNORE_INDEX).nonzero().flatten().tolist() == [75, 76, 77, 78, 79, 80]


def test_one_tokenisation_of_the_whole_conversation_equals_prompt_plus_answer(
    qwen_tokenizer: PreTrainedTokenizerBase,
) -> None:
    codec = ActionCodec(ActionTokens.from_tokenizer(qwen_tokenizer), n_bins=1000, chunk_size=8, action_dim=7)
    bins = torch.randint(0, 1001, (4, 8, 7), generator=torch.Generator().manual_seed(0))
    chunk = codec.encode_bins(bins)
    encoder = encoder_of(qwen_tokenizer, system_prompt=LIBERO, image_tokens=(1,))
    for row, task in enumerate(["put the bowl on the plate", "", "10 20", "¿café?\n"]):
        whole = chat_text(LIBERO, task, 1) + codec.bins_to_text(bins)[row] + "<|im_end|>\n"
        ids = [*encoder.encode(task).tolist(), *chunk.ids[row][chunk.is_token[row]].tolist()]
        assert qwen_tokenizer.encode(whole, add_special_tokens=False) == ids


# ---------------------------------------------------------------- Qwen's chat template


@pytest.mark.parametrize("add_vision_id", [False, True])
@pytest.mark.parametrize("image_tokens", [(128,), (64, 64), (4, 6, 2)], ids=str)
@pytest.mark.parametrize(
    "task",
    [
        "pick up the black bowl",
        "",
        " leading and trailing ",
        "two\nlines\n",
        "Ünïcödé 日本語 🤖",
        '<b>{{ 7*7 }}</b> "quoted"',
    ],
)
def test_a_prompt_is_what_qwens_chat_template_makes_of_the_messages(
    qwen_tokenizer: PreTrainedTokenizerBase, task: str, image_tokens: tuple[int, ...], add_vision_id: bool
) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": LIBERO}]},
        {
            "role": "user",
            "content": [*[{"type": "image"}] * len(image_tokens), {"type": "text", "text": task}],
        },
    ]
    text = qwen_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, add_vision_id=add_vision_id
    )
    assert text == chat_text(LIBERO, task, len(image_tokens), add_vision_id=add_vision_id)
    head, *tails = text.split("<|image_pad|>")
    assert len(tails) == len(image_tokens)
    expanded = head + "".join("<|image_pad|>" * n + tail for n, tail in zip(image_tokens, tails, strict=True))
    encoder = encoder_of(
        qwen_tokenizer, system_prompt=LIBERO, image_tokens=image_tokens, add_vision_id=add_vision_id
    )
    assert encoder.encode(task).tolist() == qwen_tokenizer.encode(expanded, add_special_tokens=False)


def test_a_libero_prompt_has_the_length_the_facts_give(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    """About 208 tokens, 128 of them image, with LIBERO's longest-looking instructions."""
    encoder = encoder_of(qwen_tokenizer, system_prompt=LIBERO, image_tokens=(128,))
    ids = encoder.encode("put both the alphabet soup and the tomato sauce in the basket")
    assert int((ids == 151655).sum()) == 128
    assert 200 <= len(ids) <= 216


# ---------------------------------------------------------------- the tokenizer's characters


def test_qwens_characters_are_single_tokens_with_the_known_ids(
    qwen_tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert ActionTokens.from_tokenizer(qwen_tokenizer) == ActionTokens(
        digits=(15, 16, 17, 18, 19, 20, 21, 22, 23, 24),
        space=220,
        end=151645,
        newline=198,
        mask=30,
        pad=151643,
    )


def test_the_byte_level_tokenizer_has_single_tokens_too(tiny: PreTrainedTokenizerBase) -> None:
    tokens = ActionTokens.from_tokenizer(tiny)
    ids = [*tokens.digits, tokens.space, tokens.mask, tokens.newline, tokens.end, tokens.pad]
    assert [tiny.decode([i]) for i in ids] == [*"0123456789", " ", "?", "\n", "<|im_end|>", "<|endoftext|>"]


def test_a_tokenizer_without_padding_pads_with_the_end_token() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.pad_token = None
    tokens = ActionTokens.from_tokenizer(tokenizer)
    assert tokens.pad == tokens.end


def tokenizer_with(*merges: tuple[str, str], without: str = "") -> PreTrainedTokenizerBase:
    """A byte-level tokenizer that applies the merges, and lacks the characters of ``without``."""
    from transformers import PreTrainedTokenizerFast

    alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in without]
    tokens = [*alphabet, *("".join(merge) for merge in merges), "<|endoftext|>"]
    if "<|im_end|>" not in without:
        tokens.append("<|im_end|>")
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    specials = [token for token in ("<|endoftext|>", "<|im_end|>") if token in tokens]
    backend.add_special_tokens(specials)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>"
    )
    tokenizer.name_or_path = "some/other-vlm"
    return tokenizer


@pytest.mark.parametrize(
    ("merge", "merged"),
    [
        (("1", "0"), "10"),
        (("2", "0"), "20"),
        (("9", "1"), "91"),
        (("5", "5"), "55"),
        (("Ġ", "2"), " 2"),
        (("7", "Ġ"), "7 "),
    ],
    ids=str,
)
def test_a_tokenizer_that_merges_any_two_characters_is_refused(merge: tuple[str, str], merged: str) -> None:
    with pytest.raises(TokenizerError) as error:
        ActionTokens.from_tokenizer(tokenizer_with(merge))
    message = str(error.value)
    assert message.startswith(
        f"tokenizer 'some/other-vlm' merges digits or spaces: {merged!r} became 1 tokens ["
    )
    assert "expected the 2 single-character tokens [" in message
    assert message.endswith("Use a backbone whose tokenizer splits digits (Qwen2-VL, Qwen2.5-VL, Qwen3-VL).")


def test_a_tokenizer_that_merges_only_longer_runs_is_refused() -> None:
    """No pair merges, but three digits become one token: unigram tokenizers can do that."""

    class Grouping:
        name_or_path = "some/grouping-vlm"
        pad_token_id = 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [ord(text[0])] if len(text) == 1 else [*map(ord, text.replace("345", "\u0345"))]

    with pytest.raises(TokenizerError, match="tokenizer 'some/grouping-vlm' merges digits or spaces: "):
        ActionTokens.from_tokenizer(Grouping())  # type: ignore[arg-type]


def test_a_tokenizer_that_adds_a_prefix_to_a_digit_is_refused() -> None:
    class Prefixing:
        name_or_path = "some/sentencepiece-vlm"

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [7, *map(ord, text)]

    with pytest.raises(TokenizerError) as error:
        ActionTokens.from_tokenizer(Prefixing())  # type: ignore[arg-type]
    assert str(error.value) == (
        "tokenizer 'some/sentencepiece-vlm' writes '0' as 2 tokens [7, 48], but action text needs one token per "
        "character. Use a backbone whose tokenizer splits digits (Qwen2-VL, Qwen2.5-VL, Qwen3-VL)."
    )


def test_a_tokenizer_without_chat_turns_is_refused() -> None:
    with pytest.raises(TokenizerError) as error:
        ActionTokens.from_tokenizer(tokenizer_with(without="<|im_end|>"))
    message = str(error.value)
    assert message.startswith(
        "tokenizer 'some/other-vlm' has no token for the end of a chat turn: '<|im_end|>' became ["
    )
    assert message.endswith("Use an instruction-tuned Qwen-VL backbone.")


def test_a_tokenizer_without_an_image_placeholder_is_refused() -> None:
    tokenizer = tokenizer_with()
    with pytest.raises(TokenizerError) as error:
        encoder_of(tokenizer)
    assert str(error.value) == (
        f"the tokenizer has no image placeholder '<|image_pad|>' among its {len(tokenizer)} tokens. Use a Qwen-VL "
        "backbone."
    )


# ---------------------------------------------------------------- batches, cache and refusals


def test_shorter_prompts_are_padded_on_the_left(tiny: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(tiny)
    short, long = encoder.encode("a"), encoder.encode("a task")
    ids, mask = encoder.encode_batch(["a", "a task", "a"])
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    pad = tiny.pad_token_id
    assert ids.tolist() == [[pad] * 5 + short.tolist(), long.tolist(), [pad] * 5 + short.tolist()]
    assert mask.tolist() == [
        [False] * 5 + [True] * len(short),
        [True] * len(long),
        [False] * 5 + [True] * len(short),
    ]


def test_each_distinct_task_is_tokenised_once(tiny: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(tiny)
    calls: list[str] = []
    real = encoder.tokenizer

    def encode(text: str, add_special_tokens: bool) -> Any:
        calls.append(text)
        return real.encode(text, add_special_tokens=add_special_tokens)

    encoder.tokenizer = SimpleNamespace(encode=encode)  # type: ignore[assignment]
    first, _ = encoder.encode_batch(["a", "b", "a"])
    again, _ = encoder.encode_batch(["a", "b", "a"])
    assert len(calls) == 2
    assert torch.equal(first, again)


def test_changing_a_returned_prompt_does_not_change_the_next_one(tiny: PreTrainedTokenizerBase) -> None:
    encoder = encoder_of(tiny)
    expected = encoder.encode("a").tolist()
    encoder.encode("a").zero_()
    encoder.encode_batch(["a"])[0].zero_()
    assert encoder.encode("a").tolist() == expected


def test_a_prompt_longer_than_the_limit_is_refused_not_truncated(tiny: PreTrainedTokenizerBase) -> None:
    length = len(encoder_of(tiny).encode("stack the cups"))
    assert len(encoder_of(tiny, max_length=length).encode("stack the cups")) == length
    with pytest.raises(PromptError) as error:
        encoder_of(tiny, max_length=length - 1).encode("stack the cups")
    assert str(error.value) == (
        f"the prompt for task 'stack the cups' has {length} tokens (2 of them image), more than "
        f"max_prompt_length={length - 1}. Shorten the task text or system_prompt, use fewer or smaller images, or "
        "raise max_prompt_length."
    )


@pytest.mark.parametrize(
    "markup",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|endoftext|>",
    ],
)
def test_chat_markup_in_a_task_is_refused(tiny: PreTrainedTokenizerBase, markup: str) -> None:
    with pytest.raises(PromptError) as error:
        encoder_of(tiny).encode(f"push{markup}it")
    assert str(error.value) == (
        f"task 'push{markup}it' contains the chat markup {markup!r}, which would change the layout of the prompt. "
        "Remove it from the task text."
    )


def test_angle_brackets_that_are_no_markup_are_allowed(tiny: PreTrainedTokenizerBase) -> None:
    ids = encoder_of(tiny).encode("press <|start|>").tolist()
    assert "press <|start|><|im_end|>" in tiny.decode(ids)


@pytest.mark.parametrize("task", [None, 3, ["push"], b"push"], ids=repr)
def test_a_task_that_is_no_string_is_refused(tiny: PreTrainedTokenizerBase, task: Any) -> None:
    with pytest.raises(PromptError) as error:
        encoder_of(tiny).encode(task)
    assert str(error.value) == (
        f"task is {task!r} ({type(task).__name__}), expected a string. Every dataset frame and every command needs a "
        "task text (an empty one is allowed)."
    )


def test_an_empty_task_is_allowed(tiny: PreTrainedTokenizerBase) -> None:
    assert tiny.decode(encoder_of(tiny).encode("")).endswith(
        "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_encoder_reads_a_tokenizer_json_as_stored(
    qwen_tokenizer: PreTrainedTokenizerBase, qwen_folder: Path
) -> None:
    stored = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    settings_ = PromptSettings(system_prompt=LIBERO, image_tokens=(128,), pad_token_id=151643)
    ours = PromptEncoder(stored, settings_).encode("put the mug on the plate")
    assert torch.equal(
        ours, PromptEncoder(qwen_tokenizer.backend_tokenizer, settings_).encode("put the mug on the plate")
    )


# ---------------------------------------------------------------- rotary positions

TEXT, IMAGE, PAD = 7, 9, 0


@pytest.fixture(scope="module")
def get_rope_index() -> Any:
    """transformers' own method, bound to an object that has all it reads: no weights are needed."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    class Owner:
        config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=4))
        get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids
        get_rope_index = Qwen2_5_VLModel.get_rope_index

    return Owner().get_rope_index


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]], tuple[int, int], int]:
    """Rows of text and images of one grid, padded on both sides; also the number of images."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    rows: list[tuple[int, list[int]]] = []
    n_images = 0
    for _ in range(draw(st.integers(1, 3))):
        row = [TEXT] * draw(st.integers(0, 4))
        for _ in range(draw(st.integers(0, 3))):
            # vision_end and vision_start: there is always text between two images
            row += [IMAGE] * (grid[0] * grid[1]) + [TEXT] * draw(st.integers(1, 3))
            n_images += 1
        row += [TEXT] * draw(st.integers(0 if row else 1, 3))
        rows.append((draw(st.integers(0, 3)), row))
    width = max(left + len(row) for left, row in rows)
    ids, mask = [], []
    for left, row in rows:
        right = width - left - len(row)
        ids.append([PAD] * left + row + [PAD] * right)
        mask.append([False] * left + [True] * len(row) + [False] * right)
    return ids, mask, grid, n_images


@given(layout=layouts())
@settings(max_examples=100, deadline=None)
def test_rope_positions_are_transformers_own_wherever_there_is_a_token(
    get_rope_index: Any, layout: Any
) -> None:
    rows, real, grid, n_images = layout
    ids, mask = torch.tensor(rows), torch.tensor(real)
    positions, following = rope_positions(ids, mask, image_token_id=IMAGE, grid=grid)
    expected, deltas = get_rope_index(
        ids,
        mm_token_type_ids=(ids == IMAGE).int(),
        image_grid_thw=torch.tensor([[1, grid[0] * 2, grid[1] * 2]] * n_images) if n_images else None,
        attention_mask=mask.long(),
    )
    assert positions.shape == expected.shape
    assert torch.equal(positions[:, mask], expected[:, mask])
    assert bool((positions[:, ~mask] == 1).all())
    # transformers: next position = delta + number of tokens so far
    assert following.tolist() == (deltas.flatten() + mask.sum(1)).tolist()


def test_rope_positions_are_the_ones_worked_out_by_hand() -> None:
    #       pad  text  image 2 x 3                    text
    ids = torch.tensor([[PAD, TEXT, *[IMAGE] * 6, TEXT, TEXT]])
    positions, following = rope_positions(ids, ids != PAD, image_token_id=IMAGE, grid=(2, 3))
    assert positions[:, 0].tolist() == [
        [1, 0, 1, 1, 1, 1, 1, 1, 4, 5],
        [1, 0, 1, 1, 1, 2, 2, 2, 4, 5],
        [1, 0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]
    assert following.tolist() == [6]
