"""Importing the paper's and vla0-trl's checkpoints, through the real ``vla0 import``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.commands import evaluate, train, train_arguments
from helpers.official_checkpoint import (
    FIRST,
    LIBERO_MAX,
    LIBERO_MIN,
    SECOND,
    TRL_OPTIONS,
    pretend_hub,
    refusal,
    write_paper_checkpoint,
    write_trl_checkpoint,
)
from helpers.tiny import make_dataset
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.errors import OutputError
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.importing import load_official_checkpoint

# ---------------------------------------------------------------------- what is imported


def test_the_config_is_the_papers(imported: Path) -> None:
    config = VLA0Policy.config_class.from_pretrained(imported)
    assert isinstance(config, VLA0Config)
    got = {
        name: getattr(config, name)
        for name in (
            "chunk_size",
            "n_bins",
            "action_dim",
            "image_size",
            "crop_ratio",
            "tile_images",
            "add_vision_id",
            "camera_keys",
            "n_action_steps",
            "ensemble_n_chunks",
            "ensemble_old_weight",
            "binary_action_indices",
            "repetition_penalty",
            "temperature",
            "license",
            "push_to_hub",
        )
    }
    assert got == {
        "chunk_size": 8,
        "n_bins": 1000,
        "action_dim": 7,
        "image_size": (224, 224),
        "crop_ratio": 0.875,
        "tile_images": True,
        "add_vision_id": False,  # config.yaml says true
        "camera_keys": ["observation.images.image", "observation.images.image2"],
        "n_action_steps": 1,
        "ensemble_n_chunks": 8,
        "ensemble_old_weight": 0.5,
        "binary_action_indices": [6],
        "repetition_penalty": 1.05,
        "temperature": 0.0,
        "license": "cc-by-nc-4.0",
        "push_to_hub": False,
    }
    # The machine that loads the policy chooses the device.
    assert json.loads((imported / "config.json").read_text())["device"] is None


def test_the_statistics_are_liberos(imported: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    config = VLA0Config.from_pretrained(imported)
    preprocess, postprocess = make_pre_post_processors(config, str(imported))
    ends = torch.stack([-torch.ones(7), torch.ones(7)])
    torch.testing.assert_close(postprocess(ends), torch.tensor([LIBERO_MIN, LIBERO_MAX]), rtol=0, atol=1e-7)
    files = [file for file in imported.glob("policy_p*.safetensors") if "vla0_prompt" not in file.name]
    assert len(files) == 2
    for file in files:
        stored = load_file(file)
        assert torch.equal(stored["action.min"], torch.tensor(LIBERO_MIN))
        assert torch.equal(stored["action.max"], torch.tensor(LIBERO_MAX))
    images = {key: torch.zeros(1, 3, 8, 8) for key in config.camera_keys}
    batch = preprocess({**images, "action": torch.tensor([LIBERO_MIN]), "task": ["push"]})
    assert torch.equal(batch["action"], -torch.ones(1, 7))


def test_the_imported_policy_answers_as_the_source_model_does(source: Path, imported: Path) -> None:
    """The source runs by hand: transformers loads it, generates from the protocol's prompt; numbers by hand."""
    from lerobot.policies.factory import make_pre_post_processors
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    generator = torch.Generator().manual_seed(3)
    third_person, wrist = (torch.rand(1, 3, 256, 256, generator=generator) for _ in range(2))

    # By hand.
    model: Any = AutoModelForImageTextToText.from_pretrained(
        source / "model_last", dtype=torch.float32
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(source / "model_last")
    prompt = (
        "<|im_start|>system\nAnalyze the input image and predict robot actions for the next 8 timesteps. Each "
        "action has 7 dimensions. Output a single sequence of 56 integers (0-1000 each), representing the 8 "
        "timesteps sequentially. Provide only space separated numbers. Nothing else.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 128}<|vision_end|>open the drawer<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = torch.tensor([tokenizer.encode(prompt)])
    config = VLA0Config.from_pretrained(imported)
    config.device, config.dtype = "cpu", "float32"
    pixels, grid = encode_images([third_person, wrist], config.image_settings(), None)
    assert grid.tolist() == [[1, 16, 32]]
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=pixels,
            image_grid_thw=grid,
            do_sample=False,
            max_new_tokens=300,
            prefix_allowed_tokens_fn=numbers_only(tokenizer, ids.shape[1], count=56, top=1000),
        )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    numbers = np.array([int(n) for n in text.split()]).reshape(8, 7)
    assert len(set(numbers.flatten().tolist())) > 5  # not one number over and over
    low, high = np.array(LIBERO_MIN), np.array(LIBERO_MAX)
    actions = low + numbers / 1000 * (high - low)
    actions[:, 6] = np.where(numbers[:, 6] >= 500, 1, -1)

    # Imported.
    policy = VLA0Policy.from_pretrained(imported, config=config)
    preprocess, postprocess = make_pre_post_processors(config, str(imported))
    observation = {
        "observation.images.image": third_person,
        "observation.images.image2": wrist,
        "task": ["open the drawer"],
    }
    batch = preprocess(observation)
    assert torch.equal(batch["observation.language.tokens"], ids)
    chunk = postprocess(policy.predict_action_chunk(batch))
    np.testing.assert_allclose(chunk[0].numpy(), actions, atol=1e-6)
    policy.reset()
    np.testing.assert_allclose(postprocess(policy.select_action(batch))[0].numpy(), actions[0], atol=1e-6)


def numbers_only(tokenizer: Any, start: int, *, count: int, top: int) -> Callable[[int, Tensor], list[int]]:
    """Return generate's constraint to ``count`` integers up to ``top``, written here once more on purpose."""
    token = {c: tokenizer.encode(c)[0] for c in "0123456789 "}
    end = tokenizer.encode("<|im_end|>")[0]

    def allowed(_: int, ids: Tensor) -> list[int]:
        numbers = tokenizer.decode(ids[start:]).split(" ")
        now = numbers[-1]
        legal = [token[d] for d in "0123456789" if now != "0" and int(now + d) <= top]
        if now:
            legal.append(token[" "] if len(numbers) < count else end)
        return legal

    return allowed


def test_the_folder_is_what_save_pretrained_writes(imported: Path, tmp_path: Path) -> None:
    config = VLA0Config.from_pretrained(imported)
    config.device, config.param_dtype = "cpu", "bfloat16"
    VLA0Policy.from_pretrained(imported, config=config).save_pretrained(tmp_path)
    processors = {p.name for p in imported.iterdir() if p.name.startswith("policy_p")}
    assert {"policy_preprocessor.json", "policy_postprocessor.json"} < processors
    assert {p.name for p in imported.iterdir()} - processors == {p.name for p in tmp_path.iterdir()} | {
        "README.md"
    }
    assert {p.name for p in (imported / "vlm").iterdir()} == {p.name for p in (tmp_path / "vlm").iterdir()}
    with (
        safe_open(imported / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "model.safetensors", "pt") as saved,
    ):
        assert set(ours.keys()) == set(saved.keys())
        assert ours.metadata() == saved.metadata()
        types = set()
        for name in saved.keys():  # noqa: SIM118 - not a dict
            left, right = ours.get_tensor(name), saved.get_tensor(name)
            assert left.dtype == right.dtype and torch.equal(left, right), name
            types.add(left.dtype)
    assert types == {torch.bfloat16, torch.int64}
    assert load_file(imported / "model.safetensors")["augmentation.state"].tolist() == [0, 0]
    left, right = (json.loads((folder / "config.json").read_text()) for folder in (imported, tmp_path))
    assert {key for key in left | right if left.get(key) != right.get(key)} == {"device", "param_dtype"}


def test_the_card_names_both_licences(imported: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(imported / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert card.data.library_name == "lerobot"
    assert "Qwen Research License" in card.text
    assert "`vla0-libero`" in card.text  # the name of the folder, not where it lies
    assert str(imported.parents[1]) not in card.text


def test_lerobot_trains_and_evaluates_the_imported_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_paper_checkpoint(
        tmp_path / "paper", horizon=2, bins=100, size=56, cameras="('3p1',)", low=[-2.0, 0.0], high=[6.0, 1.0]
    )
    policy = tmp_path / "policy"
    camera = "--camera=3p1=observation.images.top"
    assert main(["import", str(source), "--out", str(policy), camera]) == 0
    data = make_dataset(tmp_path / "data", episodes=2, frames=4)
    train(
        [
            f"--policy.path={policy}",
            "--policy.device=cpu",
            "--policy.dtype=float32",
            "--policy.push_to_hub=false",
            "--num_workers=0",
            "--batch_size=2",
            "--env_eval_freq=0",
            *train_arguments(data, tmp_path / "run", steps=2, save=2),
        ],
        monkeypatch,
    )
    trained = tmp_path / "run/checkpoints/000002/pretrained_model"
    before, after = (load_file(folder / "model.safetensors") for folder in (policy, trained))
    assert before.keys() == after.keys()
    assert after["augmentation.state"].tolist() == [0, 2]
    name = "vlm.model.model.language_model.layers.0.mlp.up_proj.weight"
    step = (after[name] - before[name].float()).abs().max().item()
    assert 0 < step < 2 * 2 * 4e-5  # two AdamW steps of the learning rate, with a margin
    evaluate(
        [
            f"--policy.path={policy}",
            "--policy.device=cpu",
            "--policy.dtype=float32",
            "--env.type=toy",
            "--eval.n_episodes=1",
            "--eval.batch_size=1",
            f"--output_dir={tmp_path / 'eval'}",
        ],
        monkeypatch,
    )
    assert json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 1


def test_load_official_checkpoint_is_the_same_in_python(source: Path, imported: Path, tmp_path: Path) -> None:
    kept = load_official_checkpoint(source, out=tmp_path / "kept", paper_ensemble=True)
    assert kept.config.ensemble_old_weight == 1.0
    assert not kept.training
    assert (tmp_path / "kept" / "policy_preprocessor.json").is_file()
    temporary = load_official_checkpoint(source, cameras={"3p2": "observation.images.wrist"})
    assert temporary.config.camera_keys == ["observation.images.image", "observation.images.wrist"]
    stored = load_file(imported / "model.safetensors")
    for name, tensor in temporary.state_dict().items():
        if name in stored:
            assert torch.equal(tensor, stored[name].to(tensor.dtype)), name
    with pytest.raises(OutputError, match="kept exists already"):
        load_official_checkpoint(source, out=tmp_path / "kept")


# ---------------------------------------------------------------------- vla0-trl's layout


def test_trls_layout_needs_its_settings_said(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    message = refusal(capsys, model, tmp_path)
    assert (
        "--chunk-size 8 --n-bins 1000 --image-size 224 --crop-ratio 0.875 --tile "
        "--camera image=observation.images.image --camera image2=observation.images.image2" in message
    )
    assert main(["import", str(model), "--out", str(tmp_path / "a"), *TRL_OPTIONS]) == 0
    # The folder above it is recognised as well.
    assert main(["import", str(tmp_path / "run"), "--out", str(tmp_path / "b"), *TRL_OPTIONS]) == 0
    for out in (tmp_path / "a", tmp_path / "b"):
        # The very same policy as from the paper's layout: only the files around the weights differ.
        assert (out / "config.json").read_text() == (imported / "config.json").read_text()
        assert (out / "model.safetensors").read_bytes() == (imported / "model.safetensors").read_bytes()
        for file in imported.glob("policy_p*"):
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_several_models_have_to_be_chosen_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    shutil.copytree(model, model.with_name("checkpoint-2000"))
    message = refusal(capsys, tmp_path / "run", tmp_path, *TRL_OPTIONS)
    assert "several models: ['checkpoint-1000', 'checkpoint-2000']. Choose one with --subfolder." in message
    out = tmp_path / "policy"
    chosen = ["--subfolder=checkpoint-2000", *TRL_OPTIONS]
    assert main(["import", str(tmp_path / "run"), "--out", str(out), *chosen]) == 0
    assert (out / "model.safetensors").is_file()


def test_a_chunk_shorter_than_the_ensemble_is_averaged_as_far_as_it_reaches(tmp_path: Path) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    for horizon, n_chunks, weight in ((4, 4, 0.5), (1, 1, 1.0)):
        policy = load_official_checkpoint(
            model,
            chunk_size=horizon,
            n_bins=1000,
            image_size=(224, 224),
            crop_ratio=0.875,
            tile_images=True,
            cameras={"image": "observation.images.image"},
        )
        assert policy.config.ensemble_n_chunks == n_chunks
        assert policy.config.ensemble_old_weight == weight


# ---------------------------------------------------------------------- the Hub


def test_the_optimizer_state_is_never_downloaded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = pretend_hub(monkeypatch, source, tmp_path / "cache")
    out = tmp_path / "policy"
    assert main(["import", "ankgoyal/vla0-libero", "--revision=main", "--out", str(out)]) == 0
    assert {(repo, revision) for repo, revision, _ in fetched} == {("ankgoyal/vla0-libero", "main")}
    names = {name for _, _, name in fetched}
    assert "model_last.pth" not in names
    assert {"config.yaml", "dataset_stats.pkl", f"model_last/{FIRST}", f"model_last/{SECOND}"} < names
    assert "`ankgoyal/vla0-libero`" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["somebody/nothing", "/no/such/folder"])
def test_a_source_that_does_not_exist(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no checkpoint at {name!r}" in refusal(capsys, name, tmp_path)
