"""Checkpoints of an earlier commit still load and answer the same; `data/README.md` says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import REPO
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy

DATA = Path("tests", "data")  # relative, as the adapter names its base
FOLDERS = ["checkpoint_7b7b3f1", "adapter_7b7b3f1"]
EXPECTED = json.loads((REPO / DATA / "expected.json").read_text())
CAMERAS = ["observation.images.top", "observation.images.wrist"]
#: What `forward` is asked about, in the units of the data set: (2 rows, 3 steps, 2 dimensions).
ACTIONS = [[[0.5, 0.0], [1.0, 0.25], [1.5, 0.5]], [[-0.5, 0.0], [-1.0, -0.25], [-1.5, -0.5]]]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work from the root of the checkout, where the adapter's base is found."""
    monkeypatch.chdir(REPO)


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    """A saved policy: all weights, or an adapter on them."""
    if request.param.startswith("adapter"):
        pytest.importorskip("peft", reason="adapters need the [lora] extra")
    return DATA / str(request.param)


def observation() -> dict[str, Any]:
    """Return two observations whose every pixel is a formula of row, camera, channel, line and column."""
    channel, line, column = torch.meshgrid(*(torch.arange(n) for n in (3, 64, 64)), indexing="ij")
    pictures = [
        torch.stack(
            [(3 * column + 5 * line + 70 * channel + 40 * place + 90 * row) % 256 for row in range(2)]
        )
        for place in range(2)
    ]
    images = {key: picture.float() / 255 for key, picture in zip(CAMERAS, pictures, strict=True)}
    return {**images, "task": ["push the button", "open the drawer"]}


def load(folder: Path, decoder: str) -> tuple[VLA0Policy, Any, Any]:
    """Return policy, pre-processor and post-processor the way LeRobot's commands load them."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--decoder={decoder}"])
    policy = VLA0Policy.from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(policy.config, pretrained_path=str(folder))


def answer(folder: Path, decoder: str) -> dict[str, Any]:
    """Return bins, actions and loss of a saved policy on `observation`."""
    policy, preprocess, postprocess = load(folder, decoder)
    chunk = policy.predict_action_chunk(preprocess(observation()))
    actions: Tensor = postprocess(chunk)
    with torch.no_grad():
        loss, _ = policy.forward(preprocess({**observation(), "action": torch.tensor(ACTIONS)}))
    return {
        "bins": policy.codec.actions_to_bins(chunk)[0].tolist(),
        "actions": actions.tolist(),
        "loss": float(loss),
    }


@pytest.mark.parametrize("decoder", ["reference", "fast", "speculative"])
def test_a_saved_policy_answers_as_on_the_day_it_was_saved(folder: Path, decoder: str) -> None:
    now, then = answer(folder, decoder), EXPECTED[folder.name]
    assert now["bins"] == then["bins"]
    torch.testing.assert_close(torch.tensor(now["actions"]), torch.tensor(then["actions"]), rtol=0, atol=1e-6)
    # More sensitive than the chunk: exchanged cameras change it by 6e-5 or more.
    assert now["loss"] == pytest.approx(then["loss"], abs=1e-5)


def test_the_answers_tell_the_two_and_their_inputs_apart() -> None:
    """Otherwise an adapter that is ignored, or a task that is not read, would pass above."""
    base, adapted = (EXPECTED[name] for name in FOLDERS)
    assert base["bins"] != adapted["bins"]
    for saved in (base, adapted):
        assert saved["bins"][0] != saved["bins"][1]


def test_the_loss_tells_exchanged_cameras(folder: Path) -> None:
    policy, preprocess, _ = load(folder, "reference")
    given = observation()
    given[CAMERAS[0]], given[CAMERAS[1]] = given[CAMERAS[1]], given[CAMERAS[0]]
    with torch.no_grad():
        loss, _ = policy.forward(preprocess({**given, "action": torch.tensor(ACTIONS)}))
    assert abs(float(loss) - EXPECTED[folder.name]["loss"]) > 4e-5


def test_its_training_configuration_is_still_read(folder: Path) -> None:
    config = TrainPipelineConfig.from_pretrained(folder)
    assert config.policy is not None and config.policy.type == "vla0"
    assert (config.dataset.repo_id, config.dataset.root) == ("local/toy", "data/toy")
    assert (config.peft is not None) == folder.name.startswith("adapter")
