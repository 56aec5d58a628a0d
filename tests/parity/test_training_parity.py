"""From a dataset's raw sample to what the model is trained on: ids, labels, hidden characters, pixels, positions, loss.

Every expectation is a literal of `libero_protocol` or transformers' own processor and model; see there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.libero_policy import Libero
from helpers.libero_policy import libero as libero_of
from helpers.libero_protocol import (
    END,
    HIDDEN,
    NEWLINE,
    PROMPT,
    PROMPT_UNTILED,
    STEPS,
    SYSTEM,
    TASK,
    answer_of,
    crop_and_shrink,
    levels,
    side_by_side,
    text_of,
    third_person,
    wrist,
)
from torch import Tensor

from lerobot_policy_vla0 import modeling_vla0
from lerobot_policy_vla0.backbone import vlm

IDS = [id_ for _, id_ in PROMPT]


def forward(policy: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The loss, and what transformers' model was called with.

    Row by row, as the paper's code calls it; tests/backbone/test_shared_prefix.py holds the layout that computes what
    rows have in common once equal to this one.
    """
    seen: dict[str, Any] = {}

    def look(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        seen.update(named)

    hook = policy.vlm.model.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with mock.patch.object(vlm, "can_share_prefix", lambda text: False):
            loss, _ = policy(batch)
    finally:
        hook.remove()
    return loss.detach(), seen


@pytest.fixture
def libero(qwen_folder: Path, qwen_tokenizer: Any) -> Libero:
    return libero_of(qwen_folder, qwen_tokenizer)


@pytest.fixture
def labels_seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The labels of each loss computed."""
    seen: list[Tensor] = []
    original = modeling_vla0.answer_loss

    def record(hidden: Tensor, labels: Tensor, project: Any, **options: Any) -> Any:
        seen.append(labels.clone())
        return original(hidden, labels, project, **options)

    monkeypatch.setattr(modeling_vla0, "answer_loss", record)
    return seen


def messages(answer: str) -> list[dict[str, Any]]:
    """The conversation in transformers' own format."""
    user = [{"type": "image"}, {"type": "text", "text": TASK}]
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


# ---------------------------------------------------------------- the literals themselves


def test_the_literals_spell_the_conversation_of_the_protocol() -> None:
    """68 tokens before the picture, 128 of it, 13 after: the protocol's usual 208. The answer: its usual 205."""
    pads = "<|image_pad|>" * 128
    assert "".join(piece for piece, _ in PROMPT) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{TASK}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (len(PROMPT), IDS.count(151655)) == (209, 128)
    # 149 digits, 55 spaces, the end, the newline; without the newline 3.66 tokens per number
    answer = answer_of(list(range(8)))
    assert (len(answer), answer.count(220), sum(15 <= id_ <= 24 for id_ in answer)) == (206, 55, 149)
    for action, text, ids in STEPS:
        assert (len(action), len(text.split())) == (7, 7)
        assert ids == [220 if c == " " else 15 + int(c) for c in text]


# ---------------------------------------------------------------- ids and labels


def test_a_raw_sample_becomes_the_ids_and_labels_written_out(
    libero: Libero, labels_seen: list[Tensor]
) -> None:
    policy, pre, _ = libero.build()
    _, model_input = forward(policy, libero.batch(pre, 0))
    answer = answer_of(list(range(8)))
    assert model_input["input_ids"].tolist() == [IDS + answer]
    assert model_input["attention_mask"].tolist() == [[1] * 415]
    assert labels_seen[0].tolist() == [answer]  # columns 209 to 414; numbers, spaces, end and newline


def test_steps_past_the_episode_repeat_its_last_action_and_are_trained_on(
    libero: Libero, labels_seen: list[Tensor]
) -> None:
    """Frames 0 and 6 of an episode of eight: the second one's chunk is steps 6, 7 and six copies of 7."""
    policy, pre, _ = libero.build()
    batch = libero.batch(pre, 0, 6)
    assert batch["action_is_pad"].tolist() == [[False] * 8, [False] * 2 + [True] * 6]
    _, model_input = forward(policy, batch)
    first, second = answer_of(list(range(8))), answer_of([6, 7, 7, 7, 7, 7, 7, 7])
    # 15 + 7 * 19 digits, 55 spaces, 2: 205 ids, one fewer than the other row has
    assert (len(first), len(second)) == (206, 205)
    assert model_input["input_ids"].tolist() == [IDS + first, [*IDS, *second, 151643]]
    assert model_input["attention_mask"].tolist() == [[1] * 415, [1] * 414 + [0]]
    assert labels_seen[0].tolist() == [first, [*second, -100]]


def test_the_conversation_is_the_one_transformers_processor_writes(libero: Libero) -> None:
    policy, pre, _ = libero.build()
    _, model_input = forward(policy, libero.batch(pre, 0))
    picture = side_by_side([crop_and_shrink(f(), 16, 16, (224, 224)) for f in (third_person, wrist)])
    text = libero.processor.apply_chat_template(messages(text_of(list(range(8)))), tokenize=False)
    theirs = libero.processor(text=[text], images=[picture], return_tensors="pt")
    assert torch.equal(model_input["input_ids"], theirs["input_ids"])
    assert model_input["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist() == [[1, 16, 32]]


def test_given_characters_are_hidden_in_the_input_and_dropped_from_the_loss(
    libero: Libero, labels_seen: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answer columns 0, 3, 5 and 203: the 5 of "500", the space after it, a 0 of "700", the last digit."""
    answer = answer_of(list(range(8)))
    assert [answer[column] for column in (0, 3, 5, 203)] == [20, 220, 15, 15]

    def given(chunk: Any, **_: Any) -> Tensor:
        return torch.zeros_like(chunk.is_text).index_fill(1, torch.tensor([0, 3, 5, 203]), True)

    monkeypatch.setattr(modeling_vla0, "draw_mask", given)
    policy, pre, _ = libero.build()
    _, model_input = forward(policy.train(), libero.batch(pre, 0))
    # "500 700 300 ..." reads "?00?7?0 300 ..."
    assert model_input["input_ids"][0, 209:220].tolist() == [30, 15, 15, 30, 22, 30, 15, 220, 18, 15, 15]
    assert model_input["input_ids"][0, 220:415].tolist() == [*answer[11:203], HIDDEN, END, NEWLINE]
    assert model_input["input_ids"][0, :209].tolist() == IDS
    assert labels_seen[0][0, :11].tolist() == [-100, 15, 15, -100, 22, -100, 15, 220, 18, 15, 15]
    assert labels_seen[0][0, 11:].tolist() == [*answer[11:203], -100, END, NEWLINE]


def test_the_loss_is_transformers_own_for_the_same_conversation(libero: Libero) -> None:
    """ids and labels written out, pixels from Pillow, positions and loss from transformers' forward."""
    policy, pre, _ = libero.build()
    ours, _ = forward(policy, libero.batch(pre, 0))
    answer = answer_of(list(range(8)))
    ids = torch.tensor([IDS + answer])
    picture = side_by_side([crop_and_shrink(f(), 16, 16, (224, 224)) for f in (third_person, wrist)])
    image = libero.processor.image_processor(images=[picture], return_tensors="pt")
    with torch.no_grad():
        theirs = policy.vlm.model(
            input_ids=ids,
            labels=torch.tensor([[-100] * 209 + answer]),
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == 151655).int(),
            pixel_values=image["pixel_values"].float(),
            image_grid_thw=image["image_grid_thw"],
        ).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- pixels


def test_the_centre_crop_of_libero_is_pillows_to_the_pixel(libero: Libero) -> None:
    """0.875 of 256 pixels are 224: a crop of 16 pixels on each side and no resize, so nothing may differ."""
    policy, pre, _ = libero.build()
    _, model_input = forward(policy, libero.batch(pre, 0))
    picture = side_by_side([crop_and_shrink(f(), 16, 16, (224, 224)) for f in (third_person, wrist)])
    theirs = libero.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    ours = model_input["pixel_values"]
    assert ours.shape == (512, 1176)
    assert torch.equal(levels(ours), levels(theirs))
    torch.testing.assert_close(ours, torch.as_tensor(theirs).float(), rtol=0, atol=2e-6)
    # By hand: the first patch's first pixel is row 16, column 16 of the third person; (16 / 255 - mean) / deviation.
    assert ours[0, 0].item() == pytest.approx((16 / 255 - 0.48145466) / 0.26862954, abs=2e-6)
    assert ours[0, 392].item() == pytest.approx((16 / 255 - 0.4578275) / 0.26130258, abs=2e-6)
    # Patches go two by two; 4 rows of tokens x 16 tokens x 4 patches down, 8 tokens x 4 patches to the right is
    # pixel (112, 224): the wrist camera's row 128, column 16: red 200, green 239, blue 128.
    assert levels(ours)[4 * 16 * 4 + 8 * 4, :, 0].tolist() == [200, 239, 128]


def test_a_random_crop_is_a_window_of_the_picture_for_each_camera(libero: Libero) -> None:
    """Red and green (third person), blue and green (wrist) of the first pixel tell where it was cut."""
    plain = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the policy takes its augmentation seed from here
        policy, pre, _ = libero.build(**plain)
    _, model_input = forward(policy.train(), libero.batch(pre, 0, 1, 2))
    found = levels(model_input["pixel_values"]).view(3, 512, 3, 392)
    places = set()
    for sample in found:
        top, left, _ = sample[0, :, 0].tolist()
        _, green, wrist_top = sample[8 * 4, :, 0].tolist()
        wrist_left = 255 - green
        places |= {(top, left), (wrist_top, wrist_left)}
        assert max(top, left, wrist_top, wrist_left) <= 32
        picture = side_by_side(
            [
                crop_and_shrink(third_person(), top, left, (224, 224)),
                crop_and_shrink(wrist(), wrist_top, wrist_left, (224, 224)),
            ]
        )
        theirs = libero.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(sample, levels(theirs))
    assert len(places) == 6  # each sample and camera its own


def test_untiled_cameras_are_two_pictures_in_order(libero: Libero) -> None:
    policy, pre, _ = libero.build(tile_images=False)
    _, model_input = forward(policy, libero.batch(pre, 0))
    assert model_input["input_ids"][0].tolist() == [
        *[id_ for _, id_ in PROMPT_UNTILED],
        *answer_of(list(range(8))),
    ]
    pictures = [crop_and_shrink(f(), 16, 16, (224, 224)) for f in (third_person, wrist)]
    theirs = libero.processor.image_processor(images=pictures, return_tensors="pt")
    assert model_input["image_grid_thw"].tolist() == [[1, 16, 16], [1, 16, 16]]
    assert torch.equal(levels(model_input["pixel_values"]), levels(theirs["pixel_values"]))


# ---------------------------------------------------------------- rotary positions


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "separate"])
def test_rotary_positions_are_transformers_and_the_ones_by_hand(libero: Libero, tiled: bool) -> None:
    policy, pre, _ = libero.build(tile_images=tiled)
    _, seen = forward(policy, libero.batch(pre, 0, 6))
    ids, mask = seen["input_ids"], seen["attention_mask"]
    expected, _ = policy.vlm.model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == 151655).int(),
        image_grid_thw=seen["image_grid_thw"],
        attention_mask=mask,
    )
    real = mask.bool()
    assert torch.equal(seen["position_ids"][:, real], expected[:, real])

    time, row, column = seen["position_ids"][:, 0].tolist()
    # 68 tokens before the picture, at 0 to 67; the picture starts at 68 and is 8 tokens high.
    assert time[:68] == row[:68] == column[:68] == list(range(68))
    if tiled:  # 16 tokens wide: what follows goes on at 68 + 16 = 84
        assert time[68:196] == [68] * 128
        assert row[68:196] == [68 + k // 16 for k in range(128)]
        assert column[68:196] == [68 + k % 16 for k in range(128)]
        assert time[196:] == row[196:] == column[196:] == list(range(84, 303))
    else:  # 8 wide: 68 to 75, end and start of a picture at 76 and 77, 78 to 85, and on at 86
        assert time[68:132] == [68] * 64
        assert row[68:132] == [68 + k // 8 for k in range(64)]
        assert column[68:132] == [68 + k % 8 for k in range(64)]
        assert time[132:134] == row[132:134] == column[132:134] == [76, 77]
        assert time[134:198] == [78] * 64
        assert row[134:198] == [78 + k // 8 for k in range(64)]
        assert column[134:198] == [78 + k % 8 for k in range(64)]
        assert time[198:] == row[198:] == column[198:] == list(range(86, 305))
