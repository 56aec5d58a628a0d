"""tools.asking.pictures: which file is which camera, and the batch that LeRobot 0.6.1 would not let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import ask
from helpers.tiny import CAMERA, make_config, make_stats
from torchvision.io import write_jpeg, write_png

from lerobot_policy_vla0 import make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import CameraError, ImageError, PromptError
from lerobot_policy_vla0.observations.batches import QUESTION
from lerobot_policy_vla0.text.question import NEXT_SUBTASK, QUERY_KIND
from lerobot_policy_vla0.tools.asking.pictures import assign_files, question_batch, read_files

TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.mark.parametrize(
    ("given", "cameras", "expected"),
    [
        (["a.png"], [TOP], {TOP: "a.png"}),
        (["b.png", "a.png"], [WRIST, TOP], {WRIST: "b.png", TOP: "a.png"}),
        (["top=a.png", f"{WRIST}=b.png"], [WRIST, TOP], {WRIST: "b.png", TOP: "a.png"}),
        (["*=a.png"], [TOP, WRIST], {TOP: "a.png", WRIST: "a.png"}),
        (["wrist=b.png", "*=a.png"], [TOP, WRIST], {TOP: "a.png", WRIST: "b.png"}),
        (["top=x=y.png"], [TOP], {TOP: "x=y.png"}),
        (["image=a.png"], ["observation.image"], {"observation.image": "a.png"}),
    ],
)
def test_files_find_their_cameras(given: list[str], cameras: list[str], expected: dict[str, str]) -> None:
    assert assign_files(given, cameras) == expected


def test_a_file_whose_name_has_an_equals_sign_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("size=3.png").touch()
    assert assign_files(["size=3.png"], [TOP]) == {TOP: "size=3.png"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.png"], r"got \['a\.png'\] for the cameras .*Give one file for each.*\*=FILE"),
        (["a.png", "b.png", "c.png"], "Give one file for each"),
        (["top=a.png"], "Give one file for each"),
        (["top=a.png", "b.png"], "Give one file for each"),
        ([], "Give one file for each"),
        (["front=a.png", "b.png"], r"'front=a\.png' names no camera of the policy, which has \['obs"),
        (["top=a.png", f"{TOP}=b.png"], rf"two files for '{TOP}': 'a\.png' and 'b\.png'"),
    ],
)
def test_files_that_do_not_fit_the_cameras_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(CameraError, match=message):
        assign_files(given, [TOP, WRIST])


def test_pictures_are_read_as_they_are(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    write_png(picture, str(tmp_path / "a.png"))
    write_png(picture[:1], str(tmp_path / "grey.png"))
    write_jpeg(picture, str(tmp_path / "b.jpg"))
    read = read_files({TOP: "a.png", WRIST: "grey.png", "c": "b.jpg"}, tmp_path)
    assert torch.equal(read[TOP], picture.unsqueeze(0))
    assert torch.equal(read[WRIST], picture[:1].expand(3, 20, 30).unsqueeze(0))
    assert read["c"].shape == (1, 3, 20, 30)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    for name in ("a.png", "missing.png", ""):
        with pytest.raises(
            ImageError, match=rf"{tmp_path / name} cannot be read as a picture .*Give a PNG or JPEG.*\.top"
        ):
            read_files({TOP: name}, tmp_path)


def test_the_batch_is_that_of_the_whole_pre_processor(speaking_backbone: Path) -> None:
    """Also for a policy with a state in its prompts: a picture without a robot has none."""
    for options in (
        {},
        {"state_in_prompt": True},
        {
            "use_relative_actions": True,
            "relative_exclude_joints": [],
            "action_feature_names": ["x", "y"],
        },
    ):
        options_: dict[str, Any] = options
        config = make_config(vlm_model_name=str(speaking_backbone), **options_)
        preprocess, _ = make_vla0_pre_post_processors(config, make_stats())
        whole = ask(config, NEXT_SUBTASK, "Tidy up.", task="wave")
        batch = question_batch(preprocess, {CAMERA: whole[CAMERA]}, NEXT_SUBTASK, "Tidy up.", "wave")
        for key in (QUESTION, CAMERA):
            assert torch.equal(batch[key], whole[key])
        assert batch[QUERY_KIND] == whole[QUERY_KIND]
        with pytest.raises(PromptError, match="the goal is ''"):
            question_batch(preprocess, {CAMERA: whole[CAMERA]}, NEXT_SUBTASK, "")
