"""`vla0 import` of what `vla0 export` wrote gives the policy back, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.exports import save_policy, two_cameras
from helpers.official_checkpoint import pretend_hub, refusal
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.exporting.export import export_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder, with what training leaves in it."""
    made = VLA0Policy(two_cameras(cameras=["observation.images.wrist"], binary_action_indices=[1]))
    made.augmentation.state.copy_(torch.tensor([5, 77]))
    folder = save_policy(made, tmp_path_factory.mktemp("policies") / "policy")
    (folder / "train_config.json").write_text('{"dataset": {"repo_id": "me/data"}}')
    (folder / "README.md").write_text("# A policy\n")
    return folder


@pytest.fixture(scope="module")
def exported(policy: Path) -> Path:
    export_policy(policy, policy.with_name("export"))
    return policy.with_name("export")


@pytest.fixture
def broken(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export to damage."""
    return Path(shutil.copytree(exported, tmp_path / "broken"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_comes_back_bit_for_bit(
    policy: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(exported), "--out", str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(policy)
    assert "2 steps x 2 integers in 0-100" in capsys.readouterr().out


def test_an_export_of_it_is_the_same_again(exported: Path, tmp_path: Path) -> None:
    assert main(["import", str(exported), "--out", str(tmp_path / "back")]) == 0
    export_policy(tmp_path / "back", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(exported)


def test_rounded_weights_come_back_as_they_were_rounded(policy: Path, tmp_path: Path) -> None:
    export_policy(policy, tmp_path / "half", dtype="bfloat16")
    assert main(["import", str(tmp_path / "half"), "--out", str(tmp_path / "back")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (policy, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        rounded = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert after[name].dtype == rounded.dtype and torch.equal(after[name], rounded), name
    VLA0Policy.from_pretrained(tmp_path / "back")


def test_sharded_weights_of_an_export_are_read(policy: Path, broken: Path, tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    weights = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    save_torch_state_dict(weights, broken, max_shard_size=100_000)
    assert len(list(broken.glob("model-*.safetensors"))) > 2
    assert main(["import", str(broken), "--out", str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(policy)


def test_an_export_on_the_hub_comes_back_the_same(
    policy: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_hub(monkeypatch, exported, tmp_path / "cache")
    assert main(["import", "me/served", "--out", str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(policy)


# ------------------------------------------------------------------ refusals


def test_options_that_an_export_has_no_use_for_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, exported, tmp_path, "--chunk-size=8", "--paper-ensemble")
    assert "chunk_size=8, paper_ensemble=True would be ignored" in said


def test_lost_and_foreign_tensors_are_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(broken / "model.safetensors")
    bias = weights.pop("model.visual.merger.mlp.0.bias")
    save_file({**weights, "model.visual.foreign": bias}, broken / "model.safetensors")
    said = refusal(capsys, broken, tmp_path)
    assert "Missing tensors: vlm.model.model.visual.merger.mlp.0.bias" in said
    assert "Unexpected tensors: model.visual.foreign" in said


def test_a_lost_file_of_the_robots_part_is_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken / "robot/own_tensors.safetensors").unlink()
    said = refusal(capsys, broken, tmp_path)
    assert "robot has no own_tensors.safetensors" in said and "the whole export again" in said
