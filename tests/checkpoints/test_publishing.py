"""What leaves the machine: checkpoints of other precisions, sharded ones, older ones, uploads and their cards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import save_backbone
from helpers.hub import stand_in_hub
from helpers.paths import REPO
from helpers.tiny import make_batch, make_config, make_dataset
from huggingface_hub import ModelCard, save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.checkpoints.files import read_config
from lerobot_policy_vla0.checkpoints.lerobot_api import CARD_FILE, CARD_IS_LEROBOTS
from lerobot_policy_vla0.checkpoints.model_card import build_model_card
from lerobot_policy_vla0.errors import CheckpointError, ConfigError

EMBEDDING = "vlm.model.model.language_model.embed_tokens.weight"
HEAD = "vlm.model.lm_head.weight"


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_checkpoints_are_written_in_the_precision_asked_for(tmp_path: Path, name: str) -> None:
    policy = VLA0Policy(make_config(save_dtype=name)).eval()
    policy.augmentation.state[1] = 2**40 + 1  # a count bfloat16 could not hold
    policy.save_pretrained(tmp_path)
    dtype = getattr(torch, name)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.pop("augmentation.state")[1] == 2**40 + 1
    assert {t.dtype for t in tensors.values()} == {dtype}
    assert len({HEAD, EMBEDDING} & tensors.keys()) == 1  # tied weights are stored once
    loaded = VLA0Policy.from_pretrained(tmp_path)
    for (key, a), (_, b) in zip(policy.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(
            a.to(dtype) if a.is_floating_point() else a, b.to(dtype) if b.is_floating_point() else b
        ), key
    assert loaded.vlm.model.lm_head.weight is loaded.vlm.model.get_input_embeddings().weight


@pytest.mark.parametrize("save_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("names", [{HEAD}, {EMBEDDING}, {HEAD, EMBEDDING}])
def test_weights_given_under_any_of_their_tied_names_are_stored_once(
    tmp_path: Path, names: set[str], save_dtype: str | None
) -> None:
    policy = VLA0Policy(make_config(save_dtype=save_dtype)).eval()
    given = {  # as gathered from shards: every name with memory of its own
        name: tensor.clone()
        for name, tensor in policy.state_dict().items()
        if name in names or name not in (HEAD, EMBEDDING)
    }
    policy.save_pretrained(tmp_path, state_dict=given)
    assert {HEAD, EMBEDDING} & load_file(tmp_path / "model.safetensors").keys() == {HEAD}
    loaded = VLA0Policy.from_pretrained(tmp_path)
    dtype = getattr(torch, save_dtype or "float32")
    assert torch.equal(loaded.state_dict()[HEAD], policy.state_dict()[HEAD].to(dtype).float())
    assert loaded.vlm.model.lm_head.weight is loaded.vlm.model.get_input_embeddings().weight


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="save_dtype='int8' must be None, 'float32' or 'bfloat16'"):
        make_config(save_dtype="int8")


def test_values_that_differ_for_one_tensor_are_refused(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    VLA0Policy.from_pretrained(tmp_path)  # stored twice, but the same
    tensors[HEAD] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"different values for .*{HEAD}.*tie_word_embeddings"):
        VLA0Policy.from_pretrained(tmp_path)


# ------------------------------------------------------------------ shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in several shards."""
    torch.manual_seed(7)
    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    save_torch_state_dict(dict(policy.state_dict()), tmp_path / "sharded", max_shard_size=200_000)
    return tmp_path / "sharded"


def test_shards_load_like_one_file(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    torch.manual_seed(7)
    whole = VLA0Policy(make_config())
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), VLA0Policy.from_pretrained(sharded).state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_damaged_shards_are_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    good = index.read_text()
    shards = sorted(sharded.glob("model-*.safetensors"))
    content = shards[1].read_bytes()

    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the {len(shards)} shards .*: {shards[1].name}"):
        VLA0Policy.from_pretrained(sharded)
    shards[1].write_bytes(content[:-50])
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} cannot be read .*truncated or damaged"):
        VLA0Policy.from_pretrained(sharded)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"do not hold what model\.safetensors\.index\.json lists"):
        VLA0Policy.from_pretrained(sharded)

    shards[1].write_bytes(content)
    with safe_open(shards[1], framework="pt") as tensors:
        victim = min(tensors.keys())
    held = load_file(shards[1])
    del held[victim]
    save_file(held, shards[1])
    described = json.loads(good)
    del described["weight_map"][victim]
    index.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=f"Missing tensors: {victim}"):
        VLA0Policy.from_pretrained(sharded)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a readable index of weights \(KeyError: 'weight_map'\)"):
        VLA0Policy.from_pretrained(sharded)


# ------------------------------------------------------------------ other versions


def test_an_older_checkpoint_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = VLA0Policy(make_config(n_bins=250)).eval()
    policy.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for option in ("save_dtype", "lora_vision", "quantization", "draft_width"):
        del written[option]
    (tmp_path / "config.json").write_text(json.dumps(written))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["augmentation_state"] = tensors.pop("augmentation.state")  # its name in the first versions
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level("INFO", logger="lerobot_policy_vla0"):
        loaded = VLA0Policy.from_pretrained(tmp_path)
    assert (
        "['draft_width', 'lora_vision', 'quantization', 'save_dtype'] existed: defaults are used"
        in caplog.text
    )
    assert (loaded.config.n_bins, loaded.config.save_dtype) == (250, None)
    assert torch.equal(loaded.augmentation.state, policy.augmentation.state)
    batch = make_batch(policy.config)
    assert torch.equal(policy.predict_action_chunk(batch), loaded.predict_action_chunk(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 8}, r"has the option\(s\) \['horizon'\], which this version .* does not know"),
        ({"decoder": "tree"}, r"does not accept: .*decoder='tree' must be one of"),
        ({"chunk_size": "eight"}, r"does not accept: .*chunk_size"),
        ({"tiny": {"width": 3}}, r"does not accept: .*width"),
        ({"type": "vla1"}, r"does not accept: .*'vla1'"),
    ],
)
def test_what_another_version_changed_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
    with pytest.raises(CheckpointError, match=message):
        VLA0Policy.from_pretrained(tmp_path)


def test_a_backbone_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(CheckpointError, match=r"is a backbone \(qwen2_5_vl\).*--policy\.vlm_model_name"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


# ------------------------------------------------------------------ cards


def card(**options: Any) -> ModelCard:
    return build_model_card(make_config(**options), dataset="me/cups")


@pytest.mark.parametrize(
    ("base", "license", "name"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "other", "qwen-research"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "apache-2.0", None),
        ("Qwen/Qwen2.5-VL-32B-Instruct", "apache-2.0", None),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "other", "qwen"),
        ("Qwen/Qwen2-VL-2B-Instruct", "apache-2.0", None),
        ("Qwen/Qwen2-VL-72B-Instruct", "other", "tongyi-qianwen"),
        ("me/my-own-vlm", None, None),
    ],
)
def test_the_card_carries_the_backbones_licence(base: str, license: str | None, name: str | None) -> None:
    made = card(vlm_model_name=base)
    assert (made.data.license, made.data.get("license_name"), made.data.base_model) == (license, name, base)
    if name:
        assert made.data.license_link == f"https://huggingface.co/{base}/blob/main/LICENSE"
        assert f"The base model `{base}` is under `{name}`" in made.text
    if license is None:
        assert "its licence applies to these weights too" in made.text


def test_a_licence_given_by_the_user_is_shown_beside_the_backbones() -> None:
    config = make_config(vlm_model_name="Qwen/Qwen2.5-VL-3B-Instruct")
    made = build_model_card(config, license="cc-by-nc-4.0")
    assert (made.data.license, made.data.get("license_name")) == ("cc-by-nc-4.0", None)
    assert "Published under `cc-by-nc-4.0`. The base model" in made.text
    assert "`qwen-research`" in made.text


@pytest.mark.parametrize(
    ("base", "given", "license"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", None, "other"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None, "apache-2.0"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("me/my-own-vlm", None, "unknown"),
        ("tiny", None, None),
    ],
)
def test_the_config_says_what_lerobots_own_card_needs(
    base: str, given: str | None, license: str | None
) -> None:
    """LeRobot 0.6.2 reads both from the config, and takes apache-2.0 where there is no licence."""
    config = make_config(vlm_model_name=base, license=given, tags=["cups"])
    assert config.license == license
    known = {"cups", "robotics", "lerobot", "vla0", "vision-language-action"}
    assert set(config.tags) == (known if base == "tiny" else {*known, f"base_model:{base}"})
    again = make_config(vlm_model_name=base, license=config.license, tags=config.tags)
    assert (again.license, again.tags) == (config.license, config.tags)


@pytest.mark.parametrize("license", ["other", "unknown", None])
def test_an_inherited_licence_is_not_taken_for_the_users(license: str | None) -> None:
    made = build_model_card(make_config(vlm_model_name="Qwen/Qwen2.5-VL-3B-Instruct"), license=license)
    assert (made.data.license, made.data.get("license_name")) == ("other", "qwen-research")
    assert "Published under" not in made.text


def test_the_card_says_how_to_run_the_policy() -> None:
    made = card(
        repo_id="me/cups-vla0",
        cameras=("observation.images.front", "observation.images.wrist"),
        n_bins=500,
        chunk_size=5,
    )
    assert made.data.tags == ["lerobot", "robotics", "vision-language-action", "vla0"]
    assert (made.data.datasets, made.data.library_name, made.data.pipeline_tag) == (
        "me/cups",
        "lerobot",
        "robotics",
    )
    assert made.data.base_model is None  # the tiny backbone is nothing the Hub knows
    for line in (
        "pip install lerobot_policy_vla0 ",
        "lerobot-eval --policy.path=me/cups-vla0 ",
        "lerobot-rollout --policy.path=me/cups-vla0 ",
        'VLA0Policy.from_pretrained("me/cups-vla0")',
        "`observation.images.front` (3, 64, 64), `observation.images.wrist` (3, 64, 64)",
        "front: {type: opencv, index_or_path: 0, width: 64, height: 64, fps: 30}",
        "0 to 500 from the data set's minimum to its maximum",
        "5 steps predicted, 3 executed per query",
        "112x56 (side by side) pixels",
        "The backbone is random and has no licence of its own.",
    ):
        assert line in made.text, line


# ------------------------------------------------------------------ uploads


def publish(root: Path, tmp_path: Path, *arguments: str) -> tuple[Path, ModelCard]:
    """Train two steps and push to the stand-in; return the uploaded folder and its card."""
    from lerobot.scripts.lerobot_train import main

    uploaded = tmp_path / "uploaded"
    with stand_in_hub(uploaded), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            [
                "lerobot-train",
                f"--config_path={REPO / 'configs' / 'debug.yaml'}",
                "--dataset.repo_id=local/tiny",
                f"--dataset.root={root}",
                f"--output_dir={tmp_path / 'out'}",
                "--steps=2",
                "--policy.push_to_hub=true",
                "--policy.repo_id=me/bars",
                *arguments,
            ],
        )
        main()
    return uploaded, ModelCard.load(uploaded / "README.md")


def evaluate_offline(policy: Path, home: Path) -> None:
    """Run ``lerobot-eval`` in a process of its own, with an empty Hub cache and without the network."""
    code = (
        "import sys, helpers.toy_env\n"
        "from lerobot.scripts.lerobot_eval import main\n"
        f"sys.argv = ['lerobot-eval', '--policy.path={policy}', '--env.type=toy', '--eval.n_episodes=1', "
        f"'--eval.batch_size=1', '--output_dir={home / 'eval'}']\n"
        "main()\n"
    )
    path = os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "empty"), "PYTHONPATH": path}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def test_what_is_uploaded_is_enough_to_act_offline(dataset_root: Path, tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    base = save_backbone(tmp_path / "base", tokenizer, len(tokenizer))
    uploaded, made = publish(
        dataset_root, tmp_path, f"--policy.vlm_model_name={base}", '--policy.tags=["bars"]'
    )
    assert {"bars", "vla0", "vision-language-action"} <= set(made.data.tags)
    assert made.data.license in (None, "unknown")  # LeRobot alone would write apache-2.0
    assert made.data.base_model is None  # a local folder means nothing to others
    ours = ModelCard.load(uploaded / CARD_FILE) if CARD_IS_LEROBOTS else made
    assert "a local folder on the training machine: its licence applies" in ours.text
    assert "pip install lerobot_policy_vla0" in ours.text
    if not CARD_IS_LEROBOTS:
        assert "| data | 3 episodes, 24 frames at 10 fps |" in made.text
        assert "| tasks | lower the bar gently; raise the bar |" in made.text
        assert "| training | 2 steps of batch 4 per process, seed 1 |" in made.text
    shutil.rmtree(base)
    trained = load_file(tmp_path / "out/checkpoints/000002/pretrained_model/model.safetensors")
    policy = VLA0Policy.from_pretrained(uploaded)
    for name, tensor in trained.items():
        assert torch.equal(policy.state_dict()[name], tensor), name
    evaluate_offline(uploaded, tmp_path)


def test_an_adapter_is_uploaded_with_what_it_needs(dataset_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    uploaded, made = publish(dataset_root, tmp_path, "--peft.method_type=LORA")
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "policy_preprocessor.json",
    } <= {p.name for p in uploaded.iterdir()}
    assert not (uploaded / "model.safetensors").exists()
    assert "vla0" in made.data.tags
    if not CARD_IS_LEROBOTS:
        assert {"lora", "peft"} <= set(made.data.tags)
        assert 'pip install "lerobot_policy_vla0[lora]"' in made.text
        assert "vla0 merge me/bars --out merged" in made.text
    here = VLA0Policy.from_pretrained(tmp_path / "out/checkpoints/000002/pretrained_model").state_dict()
    for name, tensor in VLA0Policy.from_pretrained(uploaded).state_dict().items():
        assert torch.equal(here[name], tensor), name
