"""Importing the paper's and vla0-trl's checkpoints, through the real ``vla0 import``."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.commands import evaluate, train, train_arguments
from helpers.official_checkpoint import (
    LIBERO_MAX,
    LIBERO_MIN,
    old_name,
    paper_stats,
    write_json,
    write_paper_checkpoint,
    write_trl_checkpoint,
)
from helpers.paths import REPO
from helpers.tiny import make_dataset
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.checkpoints.policy_folder import left_out
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource, find_shards, write_stream
from lerobot_policy_vla0.errors import CameraError, CheckpointError, ConfigError, OutputError
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.tools import commands
from lerobot_policy_vla0.tools.commands import COMMANDS, main
from lerobot_policy_vla0.tools.importing import layout as official_layout
from lerobot_policy_vla0.tools.importing import load_official_checkpoint
from lerobot_policy_vla0.tools.importing.restricted_pickle import load_array_pickle
from lerobot_policy_vla0.tools.importing.tensors import plan_weights

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TRL_OPTIONS = [
    "--chunk-size=8",
    "--n-bins=1000",
    "--image-size=224",
    "--crop-ratio=0.875",
    "--tile",
    "--camera=image=observation.images.image",
    "--camera=image2=observation.images.image2",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the paper's layout, with LIBERO's numbers and a tiny model."""
    return write_paper_checkpoint(tmp_path_factory.mktemp("paper") / "vla0-libero")


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a policy folder, made by the command in a process of its own."""
    out = tmp_path_factory.mktemp("imported") / "policy"
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "lerobot_policy_vla0.tools.commands",
            "import",
            str(source),
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "8 steps x 7 integers in 0-1000" in finished.stdout
    assert "observation.images.image, observation.images.image2" in finished.stdout
    return out


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(source, tmp_path / "broken"))


def refusal(capsys: pytest.CaptureFixture[str], source: Path | str, tmp_path: Path, *options: str) -> str:
    """Import what cannot be imported; returns the one line of the error. Nothing may be left behind."""
    target = tmp_path / "target"
    target.mkdir()
    capsys.readouterr()
    assert main(["import", str(source), "--out", str(target / "policy"), *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vla0 import: error:")]
    assert len(lines) == 1
    assert list(target.iterdir()) == []
    return lines[0]


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
    files = sorted(imported.glob("policy_p*normalizer_processor.safetensors"))
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
    from huggingface_hub.utils import filter_repo_objects

    fetched: list[str] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo, revision) == ("ankgoyal/vla0-libero", "main")
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            fetched.append(name)
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(official_layout, "snapshot_download", download)
    out = tmp_path / "policy"
    assert main(["import", "ankgoyal/vla0-libero", "--revision=main", "--out", str(out)]) == 0
    assert "model_last.pth" not in fetched
    assert {"config.yaml", "dataset_stats.pkl", f"model_last/{FIRST}", f"model_last/{SECOND}"} < set(fetched)
    assert "`ankgoyal/vla0-libero`" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["somebody/nothing", "/no/such/folder"])
def test_a_source_that_does_not_exist(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no checkpoint at {name!r}" in refusal(capsys, name, tmp_path)


# ---------------------------------------------------------------------- pickles


class Evil:
    """Makes a file when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "executed"
    content = {"out_ori_act": {"min": np.zeros(7), "max": Evil(trace)}}
    (broken / "dataset_stats.pkl").write_bytes(pickle.dumps(content, protocol=4))
    message = refusal(capsys, broken, tmp_path)
    assert "refers to 'posix.system'" in message and "it was not run" in message
    assert not trace.exists()
    pickle.loads((broken / "dataset_stats.pkl").read_bytes())  # the file does what it is accused of
    assert trace.exists()


@pytest.mark.parametrize(
    "names", [b"cnumpy\nload\n.", b"cbuiltins\neval\n.", b"cnumpy.core.multiarray\nscalar\n."]
)
def test_no_other_name_is_looked_up(names: bytes, tmp_path: Path) -> None:
    file = tmp_path / "stats.pkl"
    file.write_bytes(names)
    found = names[1:-2].decode().replace("\n", ".")
    with pytest.raises(CheckpointError, match=f"refers to '{found}'"):
        load_array_pickle(file)


def test_arrays_of_either_numpy_are_read(tmp_path: Path) -> None:
    array = np.array([1.5, -2.0], np.float32)
    file = tmp_path / "stats.pkl"
    for raw in (
        paper_stats([1.5, -2.0], [0.0, 0.0]),
        pickle.dumps({"out_ori_act": {"min": array}}, protocol=4),
    ):
        file.write_bytes(raw)
        read = load_array_pickle(file)["out_ori_act"]["min"]
        assert read.dtype == np.float32
        assert read.tolist() == [1.5, -2.0]


# ---------------------------------------------------------------------- damage


def without(file: Path) -> Callable[[Path], object]:
    """Return a change that removes a file."""
    return lambda root: (root / file).unlink()


def replaced(old: str, new: str) -> Callable[[Path], object]:
    """Return a change of config.yaml."""

    def change(root: Path) -> None:
        text = (root / "config.yaml").read_text()
        assert old in text
        (root / "config.yaml").write_text(text.replace(old, new))

    return change


def tensors(edit: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], object]:
    """Return a change of the tensors in the first shard."""

    def change(root: Path) -> None:
        file = root / "model_last" / FIRST
        held = {name: tensor.clone() for name, tensor in load_file(file).items()}
        edit(held)
        save_file(held, file)

    return change


def stats(content: Any) -> Callable[[Path], object]:
    """Return a change of the statistics."""
    return lambda root: (root / "dataset_stats.pkl").write_bytes(pickle.dumps(content, protocol=4))


def cut(name: str, keep: int) -> Callable[[Path], object]:
    """Return a change that truncates a file."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:keep])


def other_pixels(root: Path) -> None:
    """Say that pixels are normalised otherwise."""
    write_json(root / "model_last/preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]})


NORM = "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent shard": (without(Path("model_last", SECOND)), f"lists: {SECOND}. Download"),
    "truncated shard": (cut(f"model_last/{SECOND}", 20_000), f"{SECOND} cannot be read"),
    "truncated header": (cut(f"model_last/{SECOND}", 5), f"{SECOND} cannot be read"),
    "damaged index": (cut("model_last/model.safetensors.index.json", 30), "not a readable index of weights"),
    "missing tensor": (
        tensors(lambda held: held.pop(NORM)),
        "Missing tensors: vlm.model.model.language_model.layers.0.input_layernorm.weight.",
    ),
    "extra tensor": (
        tensors(lambda held: held.update({"model.adapter.weight": torch.zeros(2)})),
        "Unexpected tensors: model.adapter.weight.",
    ),
    "wrong shape": (
        tensors(lambda held: held.update({NORM: torch.zeros(63, dtype=torch.bfloat16)})),
        "layers.0.input_layernorm.weight is (63,), expected (64,)",
    ),
    "twice": (
        tensors(
            lambda held: held.update({NORM.replace("model.", "model.language_model.", 1): held[NORM] + 1})
        ),
        "one tensor under two names",
    ),
    "quantised": (
        tensors(lambda held: held.update({NORM: torch.zeros(64, dtype=torch.int8)})),
        f"stores {NORM} as I8",
    ),
    "untied": (
        tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING] + 1})),
        "one tensor according to config.json (tie_word_embeddings)",
    ),
    "no config.yaml": (without(Path("config.yaml")), "lacks ['config.yaml']"),
    "no statistics": (without(Path("dataset_stats.pkl")), "lacks ['dataset_stats.pkl']"),
    "no tokenizer": (without(Path("model_last/tokenizer.json")), "model_last lacks ['tokenizer.json']"),
    "no model": (without(Path("model_last/config.json")), "model_last lacks ['config.json']"),
    "no penalty": (without(Path("model_last/generation_config.json")), "or say --repetition-penalty"),
    "another model": (
        lambda root: write_json(root / "model_last/config.json", {"model_type": "nonsense"}),
        "cannot be read as a Qwen-VL model",
    ),
    "other pixels": (other_pixels, "image_mean is [0.5, 0.5, 0.5]"),
    "no YAML": (replaced("MODEL:\n", "MODEL: [\n"), "config.yaml cannot be read as YAML"),
    "YAML that builds objects": (
        replaced("horizon: 8", "horizon: !!python/object/apply:os.getpid []"),
        "could not determine a constructor for the tag",
    ),
    "no section": (replaced("  QWEN:", "  OTHER:"), "no section MODEL.QWEN"),
    "no number": (
        replaced("horizon: 8", "horizon: eight"),
        "MODEL.QWEN.horizon is 'eight', expected an integer",
    ),
    "no boolean": (
        replaced("tiled_rgb_imgs: true", "tiled_rgb_imgs: 1"),
        "tiled_rgb_imgs is 1, expected true",
    ),
    "empty YAML": (cut("config.yaml", 0), "config.yaml has no section MODEL"),
    "history": (replaced("history: 1", "history: 3"), "MODEL.QWEN.history is 3"),
    "camera count": (replaced("num_cam: 2", "num_cam: 3"), "num_cam is 3, but IMAGE.cam_list names 2"),
    "two sizes": (replaced("img_size:224", "img_size:256"), "(256, 256)} (height, width) disagree"),
    "half a pair": (replaced("('3p1','3p2')", "('3p1','3p2'):X"), "expected KEY:VALUE pairs"),
    "unsaid crop": (replaced("IMAGE.crop_img:0.875:", ""), "--crop-ratio 0.875"),
    "unusable size": (replaced("224", "225"), "image_size=(225, 225)"),
    "dimensions": (replaced("action_dim: 7", "action_dim: 6"), "original_action_dim 6, but"),
    "no range": (stats({"out_ori_act": {"min": np.zeros(7)}}), "holds {'out_ori_act': {'min': ndarray}}"),
    "NaN": (
        stats({"out_ori_act": {"min": np.full(7, np.nan), "max": np.ones(7)}}),
        "the action range is unusable",
    ),
    "truncated statistics": (cut("dataset_stats.pkl", 40), "not a readable pickle"),
    "no pickle": (
        lambda root: (root / "dataset_stats.pkl").write_text("version https://git-lfs"),
        "not a readable pickle",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_nothing_is_left_behind(
    damage: str, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = DAMAGES[damage]
    change(broken)
    assert expected in refusal(capsys, broken, tmp_path)


def test_an_equal_copy_of_the_tied_tensor_is_dropped(broken: Path, imported: Path, tmp_path: Path) -> None:
    tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING].clone()}))(broken)
    assert main(["import", str(broken), "--out", str(tmp_path / "policy")]) == 0
    left, right = (folder / "model.safetensors" for folder in (tmp_path / "policy", imported))
    assert left.read_bytes() == right.read_bytes()


def test_pickled_weights_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled weights (*.bin, *.pth) are not read" in refusal(capsys, model, tmp_path, *TRL_OPTIONS)


def test_statistics_in_json_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    (tmp_path / "run/dataset_stats.json").write_text("{")
    assert "dataset_stats.json cannot be read as JSON" in refusal(capsys, model, tmp_path, *TRL_OPTIONS)
    (tmp_path / "run/dataset_stats.json").unlink()
    shutil.rmtree(tmp_path / "target")
    assert "nor dataset_stats.json (vla0-trl's)" in refusal(capsys, model, tmp_path, *TRL_OPTIONS)


def test_an_existing_folder_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.txt").write_text("kept")
    assert main(["import", str(source), "--out", str(tmp_path / "policy")]) == 2
    assert "exists already; nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "policy" / "mine.txt").read_text() == "kept"


def test_an_import_cut_short_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot_policy_vla0.tools.importing import checkpoint as official

    def full_disk(file: Path, *_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "policy"
    monkeypatch.setattr(official, "write_stream", full_disk)
    with pytest.raises(OutputError, match=r"policy could not be written .*No space left"):
        official.import_checkpoint(source, out)
    monkeypatch.setattr(official, "write_stream", interrupt)
    with pytest.raises(KeyboardInterrupt):
        official.import_checkpoint(source, out)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--chunk-size=16"], "--chunk-size is 16, but"),
        (["--no-tile"], "--tile is False, but"),
        (["--revision=main"], "a local folder, which has no revision 'main'"),
        (["--subfolder=model_20"], "model_20 has no config.json"),
        (
            ["--camera=wrist=observation.images.wrist"],
            "--camera names ['wrist'], which the checkpoint does not",
        ),
        (["--camera=3p1=top"], "LeRobot's image keys begin with 'observation.image'"),
        (["--camera=3p1=observation.images.a", "--camera=3p1=observation.images.b"], "given twice"),
        (["--camera=3p1=observation.images.image2"], "no key twice"),
        (["--binary-action-indices=7"], "binary_action_indices=[7]"),
        (["--repetition-penalty=0"], "repetition_penalty=0.0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: list[str], expected: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, source, tmp_path, *options)


def test_options_reach_the_config(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    options = [
        "--camera=image=observation.images.front",  # LIBERO's name
        "--camera=3p2=observation.images.wrist",  # the checkpoint's name
        "--paper-ensemble",
        "--repetition-penalty=1.0",
        "--binary-action-indices=none",
        "--base-model=Qwen/Qwen2.5-VL-7B-Instruct",
        "--chunk-size=8",  # agrees with the checkpoint
    ]
    assert main(["import", str(source), "--out", str(out), *options]) == 0
    config = VLA0Config.from_pretrained(out)
    assert config.camera_keys == ["observation.images.front", "observation.images.wrist"]
    assert config.ensemble_n_chunks == 8
    assert config.ensemble_old_weight == 1.0
    assert config.repetition_penalty == 1.0
    assert config.binary_action_indices == []
    assert config.vlm_model_name == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_more_cameras_than_libero_has_need_names(tmp_path: Path) -> None:
    source = write_paper_checkpoint(tmp_path / "paper", cameras="('3p1','3p2','3p3')")
    with pytest.raises(CameraError, match=r"belongs to \['3p2', '3p3'\]"):
        load_official_checkpoint(source, cameras={"3p1": "observation.images.a"})
    keys = {f"3p{i}": f"observation.images.{name}" for i, name in ((3, "c"), (1, "a"), (2, "b"))}
    policy = load_official_checkpoint(source, cameras=keys)
    assert policy.config.camera_keys == [f"observation.images.{name}" for name in "abc"]


def test_a_config_error_is_one_too(tmp_path: Path) -> None:
    model = write_trl_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match="n_bins=0"):
        load_official_checkpoint(
            model,
            chunk_size=8,
            n_bins=0,
            image_size=(224, 224),
            crop_ratio=1.0,
            tile_images=True,
            cameras={"image": "observation.images.image"},
        )


# ---------------------------------------------------------------------- tensors


def test_every_tensor_of_the_3b_model_finds_its_place(qwen_folder: Path, tmp_path: Path) -> None:
    """Names and shapes only: Qwen2.5-VL-3B as published, in the old layout."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    for file in qwen_folder.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    write_json(tmp_path / "config.json", QWEN_3B)
    config = VLA0Config(device="cpu")
    config.input_features = {"observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 256, 256))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    reader: Any = ShardReader([])
    with torch.device("meta"):
        skeleton = VLA0Policy(config, stored_vlm=tmp_path)
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            shape = tuple(tensor.shape)
            reader.tensors[old_name(name)] = TensorSource(shape, torch.bfloat16, lambda: torch.empty(0))
    planned = plan_weights(skeleton, reader, tmp_path)
    del planned["augmentation.state"]
    assert len(planned) == 824
    assert sum(source.n_bytes for source in planned.values()) == 2 * 3_754_622_976
    assert left_out(skeleton) == {
        "vlm.model.model.language_model.embed_tokens.weight": "vlm.model.lm_head.weight"
    }


QWEN_3B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
    },
}


# ---------------------------------------------------------------------- copying


def test_one_tensor_at_a_time_is_in_memory(source: Path, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def counted(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def count() -> Tensor:
            nonlocal most
            tensor = read()
            key = len(seen)
            seen.append(key)
            alive.add(key)
            weakref.finalize(tensor, alive.discard, key)
            most = max(most, len(alive))
            return tensor

        return count

    seen: list[int] = []
    gc.disable()  # what lives on must not be swept away unnoticed
    try:
        with ShardReader(find_shards(source / "model_last")) as reader:
            sources = {
                name: TensorSource(tensor.shape, tensor.dtype, counted(tensor.read))
                for name, tensor in reader.tensors.items()
            }
            write_stream(tmp_path / "copy.safetensors", sources, {"format": "pt"})
    finally:
        gc.enable()
    copy = load_file(tmp_path / "copy.safetensors")
    assert len(seen) == len(copy) > 20
    assert most == 1
    assert not alive
    original = {k: v for name in (FIRST, SECOND) for k, v in load_file(source / "model_last" / name).items()}
    assert copy.keys() == original.keys()
    assert all(torch.equal(copy[name], original[name]) for name in copy)


def test_a_tensor_that_changes_under_the_copy_is_noticed(tmp_path: Path) -> None:
    changed = TensorSource((2, 2), torch.float32, lambda: torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"announced as \(2, 2\).*read as \(3,\)"):
        write_stream(tmp_path / "x.safetensors", {"x": changed}, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_streamed_files_are_what_safetensors_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    held = {
        "b.scalar": torch.tensor(3, dtype=dtype),
        "a": torch.arange(6, dtype=dtype).reshape(2, 3),
        "é": torch.zeros(0, 4, dtype=dtype),
    }
    sources = {n: TensorSource(tuple(t.shape), t.dtype, lambda t=t: t) for n, t in held.items()}
    write_stream(tmp_path / "ours.safetensors", sources, {"k": "v"})
    read = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == dtype for name, tensor in held.items())
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v"}


# ---------------------------------------------------------------------- the command


def test_the_console_script_is_declared_and_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"vla0": f"{main.__module__}:{main.__name__}"}
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        ([], "required: COMMAND"),
        (["improt"], "invalid choice: 'improt'"),
        (["import", "x"], "required: --out"),
        (["import", "x", "--out=y", "--camera=top"], "'top' is not NAME=KEY"),
        (["import", "x", "--out=y", "--image-size=big"], "'big' is neither pixels"),
        (["import", "x", "--out=y", "--binary-action-indices=last"], "'last' is neither 'none' nor"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err


def test_help_imports_no_subcommand(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(commands, "import_module", refuse)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(AssertionError, match="import_official was imported"):
        main(["import", "--help"])
