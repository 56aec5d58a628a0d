"""What ``vla0 import`` refuses: damaged checkpoints and options that cannot be. Nothing is left behind."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.official_checkpoint import (
    FIRST,
    SECOND,
    TRL_OPTIONS,
    refusal,
    write_json,
    write_paper_checkpoint,
    write_trl_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CameraError, ConfigError, OutputError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.importing import load_official_checkpoint

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
