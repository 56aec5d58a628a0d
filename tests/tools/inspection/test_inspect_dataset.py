"""`vla0 inspect-dataset` on datasets whose every number is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.browser import open_page
from helpers.made_up_data import REPO_ID, Page, write_dataset
from helpers.paths import REPO
from helpers.tiny import make_dataset
from torchvision.io import decode_png, read_file

from lerobot_policy_vla0.observations.images import ImageSettings, tile, transform
from lerobot_policy_vla0.tools.commands import main

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def arguments(root: Path, *more: str) -> list[str]:
    return [
        "inspect-dataset",
        f"--dataset.repo_id={REPO_ID}",
        f"--dataset.root={root}",
        "--policy.vlm_model_name=tiny",
        *more,
    ]


def inspect(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Run the command; return its JSON."""
    capsys.readouterr()
    assert main(arguments(root, "--json", *more)) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    return numbers


def of(numbers: dict[str, Any], n_bins: int) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in numbers["quantisation"] if row["n_bins"] == n_bins)
    return row


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of 4 and 6 frames: a dimension that counts 0 to 9, and one that is always 5."""
    rows = [[float(i), 5.0] for i in range(10)]
    return write_dataset(
        tmp_path_factory.mktemp("data") / "ramp",
        [rows[:4], rows[4:]],
        names=["x", "grip"],
        tasks=["push", "pull the drawer"],
    )


def test_ranges_steps_errors_and_tokens_are_what_a_person_computes(
    ramp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = inspect(ramp, capsys, "--policy.chunk_size=3", "--policy.n_action_steps=3")
    assert (numbers["episodes"], numbers["frames"], numbers["fps"]) == (2, 10, 10)
    assert numbers["episode_length"] == {"min": 4, "median": 5.0, "max": 6}
    assert numbers["tasks"] == {"pull the drawer": 1, "push": 1}
    assert numbers["chunk_seconds"] == 0.3
    assert numbers["padded_share"] == 0.2  # 1 + 2 steps of each episode's last two frames, of 10 x 3
    x, grip = numbers["actions"]
    assert (x["name"], x["min"], x["median"], x["max"], x["distinct_values"]) == ("x", 0.0, 4.5, 9.0, 10)
    assert (x["normalised_from"], x["normalised_to"], x["outside_range"]) == (0.0, 9.0, 0.0)
    assert (grip["min"], grip["max"], grip["std"]) == (5.0, 5.0, 0.0)

    assert [row["n_bins"] for row in numbers["quantisation"]] == [100, 250, 1000, 4000]
    hundred = of(numbers, 100)
    # x becomes 0 11 22 33 44 56 67 78 89 100 of 100; a step is 0.09.
    assert hundred["step"][0] == pytest.approx(0.09)
    assert hundred["max_error"] == pytest.approx([0.04, 0.0], abs=1e-6)
    assert hundred["mean_error"] == pytest.approx([0.02, 0.0], abs=1e-6)
    assert hundred["levels_used"] == [10, 1]
    assert hundred["vanishing_changes"] == [0.0, None]
    # Digits, five spaces, end and newline; the tail of an episode is repeated.
    assert hundred["tokens_mean"] == pytest.approx((15 + 6 * 16 + 17 + 18 + 19) / 10)
    assert (hundred["tokens_max"], hundred["chunks_counted"]) == (19, 10)
    assert hundred["tokens_longest_possible"] == 6 * 4 - 1 + 2
    assert of(numbers, 250)["step"][0] == pytest.approx(0.036)
    (finding,) = numbers["findings"]
    assert finding.startswith("action 1 (grip) never changes (always 5)")


def test_changes_too_small_for_the_bins_are_counted_within_episodes(
    ramp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = inspect(ramp, capsys, "--policy.n_bins=4", "--policy.chunk_size=2", "--policy.n_action_steps=1")
    own = of(numbers, 4)
    # Bins 0 0 1 1 | 2 2 3 3 4 4: five of eight changes vanish; the one between the episodes is none.
    assert own["vanishing_changes"] == [0.625, None]
    assert own["levels_used"] == [5, 1]
    assert any(line.startswith("action 0: 62% of its changes") for line in numbers["findings"])
    assert [row["n_bins"] for row in numbers["quantisation"]] == [4, 100, 250, 1000, 4000]


def test_outliers_are_found_and_both_ways_out_have_a_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [[i / 999, float(i % 2)] for i in range(1000)]
    values[500][0] = 50.0
    root = write_dataset(tmp_path / "spiky", [values], cameras={TOP: (32, 32)}, names=["x", "grip"])
    numbers = inspect(root, capsys)
    x = numbers["actions"][0]
    assert x["middle_98_share_of_range"] == pytest.approx(0.0196, rel=0.02)
    spikes, pair, jumps = numbers["findings"]
    assert spikes.startswith("action 0 (x): the middle 98 % of its values span 2% of its range")
    assert '"ACTION": "QUANTILES"' in spikes and "clamps 2.0% of the values" in spikes
    assert "makes steps 51.0 times finer" in spikes
    assert re.search(r"--policy\.n_bins=5[01]\d{3} makes the steps as fine", spikes)
    assert pair.startswith("action 1 (grip) has two values only, 0 and 1.")
    assert "binary_action_indices='[1]'" in pair
    assert jumps.startswith(
        "action 0: 98% of its changes from one frame to the next are smaller than the bins can tell"
    )

    quantiles = inspect(root, capsys, '--policy.normalization_mapping={"ACTION": "QUANTILES"}')
    x = quantiles["actions"][0]
    assert quantiles["normalization"] == "QUANTILES"
    assert 0 < x["outside_range"] < 0.05
    assert of(quantiles, 1000)["step"][0] < 0.04 * of(numbers, 1000)["step"][0]
    assert of(quantiles, 1000)["max_error"][0] > 40  # the outlier is clamped, and the report says so
    assert any("QUANTILES clamps" in line for line in quantiles["findings"])


def test_statistics_of_other_data_are_noticed(
    ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(ramp, root)
    file = root / "meta" / "stats.json"
    stats = json.loads(file.read_text())
    stats["action"]["max"][0] = 7.0
    file.write_text(json.dumps(stats))
    numbers = inspect(root, capsys)
    assert numbers["actions"][0]["outside_range"] == 0.2
    assert any("20.00% of its values lie outside the statistics" in line for line in numbers["findings"])


def test_the_report_holds_the_very_pictures_the_model_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(
        tmp_path / "two",
        [[[0.0], [1.0]], [[0.5], [0.25]]],
        cameras={TOP: (120, 160), WRIST: (64, 64)},
    )
    options = [
        "--policy.image_size=[56, 84]",
        "--policy.crop_box=[0.25, 0.0, 1.0, 0.5]",
        "--policy.crop_ratio=0.5",
        f'--policy.cameras=["{WRIST}", "{TOP}"]',
        "--episode=1",
        "--frame=1",
    ]
    out = tmp_path / "report"
    assert main(arguments(root, *options, f"--out={out}")) == 0
    text = capsys.readouterr().out
    assert "120x60" in text and "60x30" in text and "84x56" in text  # box, seen, resized: width x height

    from lerobot.datasets import LeRobotDataset

    item = LeRobotDataset(REPO_ID, root=root)[3]
    settings = ImageSettings(image_size=(56, 84), crop_box=(0.25, 0.0, 1.0, 0.5), crop_ratio=0.5)
    wrist, top = transform([item[WRIST][None], item[TOP][None]], settings, None)

    def picture(name: str) -> torch.Tensor:
        return decode_png(read_file(str(out / name)))

    assert torch.equal(picture("camera_images_wrist.png"), wrist[0])
    assert torch.equal(picture("camera_images_top.png"), top[0])
    assert torch.equal(picture("model_input.png"), tile([wrist, top])[0])

    page = Page(out / "index.html")
    assert page.links == []
    assert len(page.pictures) == 3
    assert (out / "model_input.png").read_bytes() in page.pictures
    assert all(data.startswith(b"\x89PNG") for data in page.pictures)
    for name in ("report.md", "report.json", "crops.png", "actions.png"):
        assert (out / name).stat().st_size > 0, name
    assert json.loads((out / "report.json").read_text())["cameras"][1] == {
        "key": TOP,
        "size": [120, 160],
        "after_crop_box": [60, 120],
        "seen": [30, 60],
        "resized_to": [56, 84],
    }
    assert main(arguments(root, *options, "--policy.tile_images=false", f"--out={tmp_path / 'apart'}")) == 0
    names = sorted(path.name for path in (tmp_path / "apart").glob("model_input*"))
    assert names == ["model_input_1.png", "model_input_2.png"]


def test_a_browser_shows_the_page(ramp: Path, tmp_path: Path) -> None:
    assert main(arguments(ramp, f"--out={tmp_path / 'out'}")) == 0
    assert "pull the drawer" in open_page(tmp_path / "out" / "index.html", tmp_path)


def test_the_same_report_twice_to_the_byte(ramp: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(arguments(ramp, f"--out={tmp_path / name}")) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_prompt_and_cost_are_counted_for_the_backbone(ramp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = inspect(ramp, capsys, "--policy.system_prompt=go", "--batch-size=4", "--policy.chunk_size=8")
    assert numbers["prompt"]["image_tokens"] == [64]  # 224 / 28 squared
    markup = 3 + 3 + 1 + 2  # <|im_start|> and <|im_end|> of two turns, the third start, vision start and end
    text = "system\ngo" + "\n" + "user\n" + "pull the drawer" + "\n" + "assistant\n"
    assert numbers["prompt"]["longest_prompt_tokens"] == 64 + len(text) + markup - 2
    estimates = numbers["estimates"]
    assert estimates["steps_per_epoch"] == 3
    assert (
        estimates["tokens_per_sample"]
        == numbers["prompt"]["longest_prompt_tokens"] + of(numbers, 1000)["tokens_max"]
    )
    weights = estimates["memory_gb_with_gradient_checkpointing"]["full, float32 master"]["weights"]
    assert weights == pytest.approx(4 * 2.4e6 / 1e9, abs=0.005)
    assert estimates["petaflop_per_epoch"] == pytest.approx(
        estimates["teraflop_per_sample"] * 10 / 1000, rel=1e-4
    )


def test_a_state_in_the_prompt_is_counted_and_offsets_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "with_state", episodes=1)
    short = ["--policy.system_prompt=go", "--policy.n_bins=100"]
    without = inspect(root, capsys, *short)["prompt"]["longest_prompt_tokens"]
    with_state = inspect(root, capsys, *short, "--policy.state_in_prompt=true")["prompt"][
        "longest_prompt_tokens"
    ]
    assert with_state - without == len("State: 100 100\n")
    relative = ["--policy.use_relative_actions=true", "--policy.relative_exclude_joints=[]"]
    assert main(arguments(root, *short, *relative)) == 2
    assert "use_relative_actions=True: a chunk's offsets depend on" in capsys.readouterr().err


def test_a_backbone_that_is_not_here_is_said_so(ramp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = inspect(ramp, capsys, "--policy.vlm_model_name=nobody/not-there")
    assert other["estimates"] == {
        "not_computed": "nobody/not-there is not on this machine and was not downloaded (OSError)"
    }
    assert other["prompt"]["longest_prompt_tokens"] is None
    assert other["prompt"]["image_tokens"] == [64]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy.n_bins=0"], r"n_bins=0 must be an integer in \[1, 99999\]"),
        (["--policy.chunk_size=many"], r"the options .*--policy.chunk_size=many.* cannot be read"),
        (['--policy.cameras=["observation.images.left"]'], r"names \['observation.images.left'\]"),
        (["--episode=2"], r"no frame 0 of episode 2: the dataset has the episodes 0 to 1\."),
        (["--frame=4"], r"no frame 4 of episode 0: .* this one the frames 0 to 3\."),
        (["--policy.state_in_prompt=true"], r"state_in_prompt=True needs an 'observation.state'"),
        (["--batch-size=0"], r"--batch-size=0 must be at least 1"),
        (["--policy.path=/nowhere/at/all"], r"no checkpoint at '/nowhere/at/all'"),
        # A checkpoint for two cameras: the dataset has one.
        (
            [f"--policy.path={REPO / 'tests' / 'data' / 'checkpoint_7b7b3f1'}"],
            r"reads the cameras \['observation.images.top', 'observation.images.wrist'\], and the data set has only",
        ),
    ],
)
def test_bad_input_is_named(
    ramp: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(arguments(ramp, *more)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_dataset_nan_actions_and_a_full_folder(
    ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "nothing")) == 2
    assert "cannot be read" in capsys.readouterr().err
    bad = write_dataset(tmp_path / "nan", [[[0.0, 1.0]], [[1.0, float("nan")], [1.0, 2.0]]])
    assert main(arguments(bad)) == 2
    error = capsys.readouterr().err
    assert "NaN" in error or "nan" in error
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("mine")
    assert main(arguments(ramp, f"--out={full}")) == 2
    assert "exists already; nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("option", ["--policy.chunk_sise=8", "--policy.chunk=8"])
def test_a_misspelt_option_is_refused(ramp: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        main(arguments(ramp, option))
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err
