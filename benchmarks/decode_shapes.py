"""Pass times of a random model of real shapes, and what they make of a chunk: an estimate, and labelled as one.

Used by decode.py for ``--vlm``, and by gpu.py. Random weights accept no draft, so acceptance comes from a trained
policy's rollouts; the time of a pass does not depend on what the weights say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import copy_bandwidth, percentiles, synchronise
from transformers import AutoModelForImageTextToText, DynamicCache, GenerationConfig

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.configuration_vla0 import TinyVLMConfig
from lerobot_policy_vla0.decoding.feed import Feed
from lerobot_policy_vla0.decoding.passes import PassRunner
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.grammar import AnswerGrammar
from lerobot_policy_vla0.text.prompt import IMAGE_TOKEN, rope_positions
from lerobot_policy_vla0.tools.inspection.cost import vlm_config_3b

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
#: LIBERO's protocol: 8 steps of 7 numbers up to 1000, two cameras tiled to 448 x 224, a prompt of about 208 tokens.
CHUNK, DIMS, N_BINS, GRID, TEXT = 8, 7, 1000, (16, 32), 80
#: Tokens of the longest answer: every number with the separator or the end after it, and the newline of a turn's end.
MAX_ANSWER = CHUNK * DIMS * (len(str(N_BINS)) + 1) + 1


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median wall time of a call, after two warm-ups."""
    times = []
    for index in range(repeats + 2):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        if index > 1:
            times.append(1e3 * (time.perf_counter() - began))
    return percentiles(times)[0]


def build(name: str, device: torch.device) -> VLM:
    """Return a random model in bfloat16 on the device."""
    tokenizer = build_tiny_tokenizer()
    config = (
        vlm_config_3b(tokenizer)
        if name == "qwen2.5-vl-3b-random"
        else tiny_vlm_config(TinyVLMConfig(), tokenizer)
    )
    with device:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return VLM(model.eval(), tokenizer)


def make_request(vlm: VLM, batch: int, device: torch.device) -> DecodeRequest:
    """Return a prompt of LIBERO's size."""
    image_tokens = GRID[0] * GRID[1] // vlm.merge_size**2
    image = [int(vlm.tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[0])] * image_tokens
    text = [vlm.tokens.space] * (TEXT // 2)
    ids = torch.tensor([*text, *image, *text], device=device).expand(batch, -1)
    patches = torch.randn(batch * GRID[0] * GRID[1], 3 * 2 * 14 * 14, device=device, dtype=torch.bfloat16)
    grid = torch.tensor([[1, *GRID]], device=device).expand(batch, -1)
    return DecodeRequest(ids, torch.ones_like(ids, dtype=torch.bool), patches, grid, size=(1, *GRID))


class Passes:
    """What one batch can be timed on: the vision tower, the prefill, a pass of any width.

    Args:
        vlm: the backbone.
        batch: rows.
        device: of the backbone.
        max_width: tokens of the widest pass.
    """

    def __init__(self, vlm: VLM, batch: int, device: torch.device, max_width: int) -> None:
        self.vlm = vlm
        grammar = AnswerGrammar(n_bins=N_BINS, n_numbers=CHUNK * DIMS, tokens=vlm.tokens, device=device)
        self.runner = PassRunner(vlm, grammar, max_width=max_width)
        self.runner.model.refresh()
        self.request = make_request(vlm, batch, device)
        self._starts = np.zeros(batch, dtype=np.int64)

    def vision(self) -> Any:
        """Encode the images alone."""
        return self.runner.encode_pictures(self.request)

    def prefill(self) -> Any:
        """Run images and prompt; uncaptured, what precedes the images is taken over from the second time on."""
        nothing = np.zeros((len(self._starts), 0), dtype=np.int64)
        return self.runner.prefill(self.request, Feed.chain(nothing, self._starts))

    def score(self, width: int) -> Any:
        """Run a pass over ``width`` tokens per row, after `prefill`."""
        symbols = np.zeros((len(self._starts), width), dtype=np.int64)
        return self.runner.score(Feed.chain(symbols, self._starts))


class TransformersPasses:
    """The work of `Passes` by transformers' own modules: what the lean pass is measured against.

    Scores are those of the last token, over the twelve symbols, as the lean pass gives them.

    Args:
        passes: gives backbone and prompt.
    """

    def __init__(self, passes: Passes) -> None:
        self.vlm, self.request = passes.vlm, passes.request
        vlm, request = self.vlm, self.request
        self._positions, self._following = rope_positions(
            request.ids,
            request.mask,
            image_token_id=vlm.image_token_id,
            grid=(GRID[0] // vlm.merge_size, GRID[1] // vlm.merge_size),
        )
        self._symbols = torch.tensor([*vlm.tokens.digits, vlm.tokens.space, vlm.tokens.end])
        self._symbols = self._symbols.to(request.ids.device)
        self._cache = DynamicCache()

    def vision(self) -> Any:
        """Encode the images alone."""
        return self.vlm.model.model.get_image_features(self.request.pixel_values, self.request.grid_thw)

    def prefill(self) -> Any:
        """Run images and the whole prompt."""
        self._cache = DynamicCache()
        hidden = self.vlm.model.model(
            input_ids=self.request.ids,
            attention_mask=self.request.mask.long(),
            position_ids=self._positions,
            pixel_values=self.request.pixel_values,
            image_grid_thw=self.request.grid_thw,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return self._scores(hidden[:, -1:])

    def score(self, width: int) -> Any:
        """Run a pass over ``width`` tokens per row, after `prefill`, and forget it."""
        ids = self._symbols[:1].expand(len(self.request.ids), width)
        positions = self._following.unsqueeze(1) + torch.arange(width, device=ids.device)
        hidden = self.vlm.model.model.language_model(
            inputs_embeds=self.vlm.model.get_input_embeddings()(ids),
            position_ids=positions.expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._cache.crop(self.request.ids.shape[1])
        return self._scores(hidden)

    def _scores(self, hidden: torch.Tensor) -> Any:
        return self.vlm.logits(hidden)[..., self._symbols].float().cpu().numpy()


def weight_bytes(vlm: VLM) -> int:
    """Return what a pass must read at least: the weights of the language model's layers."""
    layers = vlm.model.model.language_model.layers
    return sum(p.numel() * p.element_size() for p in layers.parameters())


def generate(vlm: VLM, request: DecodeRequest, max_new_tokens: int, min_new_tokens: int = 0) -> torch.Tensor:
    """Answer with transformers' own ``generate``, greedily and without the grammar; return the new ids."""
    ids: torch.Tensor = vlm.model.generate(
        input_ids=request.ids,
        attention_mask=request.mask.long(),
        pixel_values=request.pixel_values,
        image_grid_thw=request.grid_thw,
        mm_token_type_ids=(request.ids == vlm.image_token_id).int(),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=False,
            eos_token_id=vlm.tokens.end,
            pad_token_id=vlm.tokens.pad,
        ),
    )
    return ids[:, request.ids.shape[1] :]


@torch.inference_mode()
def measure(name: str, acceptance: Path | None, repeats: int) -> dict[str, Any]:
    """Return pass times by batch and width, floors, and the composite estimate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vlm = build(name, device)
    floor = 1e3 * weight_bytes(vlm) / copy_bandwidth(device)
    result: dict[str, Any] = {
        "benchmark": "decode",
        "vlm": name,
        "parameters": sum(p.numel() for p in vlm.model.parameters()),
        "floor_ms_per_pass": round(floor, 3),
    }
    for batch in (1, 8):
        passes = Passes(vlm, batch, device, max(WIDTHS))
        result[f"prefill_ms_batch{batch}"] = round(milliseconds(passes.prefill, device, repeats), 2)
        result[f"prompt_tokens_reused_batch{batch}"] = passes.runner.reused_columns
        for width in WIDTHS:
            took = milliseconds(partial(passes.score, width), device, repeats)
            result[f"pass_ms_batch{batch}_width{width}"] = round(took, 3)
            print(
                f"  batch {batch} width {width:3d}: {took:8.3f} ms, {took / floor:.2f} of reading the weights once"
            )
    if acceptance is not None:
        result["estimate"] = estimate(result, json.loads(acceptance.read_text()), acceptance.name)
        print("  estimate, not a measurement:", result["estimate"])
    return result


def estimate(result: dict[str, Any], rollouts: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a chunk's time from these pass times and the passes a trained policy needed."""
    table = rollouts["n_action_steps_1"]["speculative"]
    per_number = table["passes_per_varying_number"]  # constant dimensions left out: they cost nothing there
    width = min((w for w in WIDTHS if w >= table["width"]), default=max(WIDTHS))
    passes = per_number * CHUNK * DIMS
    prefill, one = result["prefill_ms_batch1"], result[f"pass_ms_batch1_width{width}"]
    return {
        "acceptance_from": source,
        "passes": round(passes, 1),
        "width": width,
        "ms_per_chunk": round(prefill + (passes - 1) * one, 1),
        "token_by_token_ms_per_chunk": round(
            prefill + 3.7 * CHUNK * DIMS * result["pass_ms_batch1_width1"], 1
        ),
    }
