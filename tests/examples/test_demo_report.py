"""The demo's report: its numbers come from the files of a run, and a file that is missing is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import evaluations
from helpers.browser import has_browser, open_page
from helpers.paths import REPO
from helpers.tiny import make_config, make_dataset, make_stats

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors

sys.path.insert(0, str(REPO / "examples" / "demo"))

import report
import report_data
import report_plots
import stages
from report_data import ReportError, Row, read_evaluations, read_rows, read_training_log

LOG = """\
INFO 2026-01-01 00:00:00 ot_train.py:272 {'batch_size': 16,
 'log_freq': 50,
INFO 2026-01-01 00:00:01 ot_train.py:442 dataset.num_frames=4434 (4K)
INFO 2026-01-01 00:00:01 ot_train.py:446 Effective batch size: 16 x 1 = 16
Training:   2%|2         | 50/3000 [00:20<20:20,  2.41step/s]INFO 2026-01-01 00:00:21 ot_train.py:641 step:50 \
smpl:800 ep:12 epch:0.18 loss:2.962 grdn:3.1 lr:1.5e-03 updt_s:0.402 token_accuracy:0.410 first_step_accuracy:0.409
INFO 2026-01-01 00:00:50 ot_train.py:673 step 500: eval_loss=0.3571
Training:  48%|####8     | 1450/3000 [10:54<12:29,  2.07step/s]INFO 2026-01-01 00:10:15 ot_train.py:641 step:1K \
smpl:23K ep:359 epch:5.23 loss:0.291 grdn:0.484 lr:8.3e-04 updt_s:0.402 token_accuracy:0.884 first_step_accuracy:0.814
INFO 2026-01-01 00:10:50 ot_train.py:673 step 1500: eval_loss=0.2671
"""


def write_evaluation(run: Path, start: int, successes: list[bool], n_tasks: int = 1) -> None:
    evaluations.write_evaluation(run / f"eval_seed{start}", {("t", i): successes for i in range(n_tasks)})


def write_run(run: Path) -> None:
    """Write a run of four seeds: the policy fails on 12, the stronger replay on 10 and 12, the constant on all."""
    write_evaluation(run, 10, [True, True])
    write_evaluation(run, 12, [False, True])
    replay = {"n_success": 2, "success": [False, True, False, True], "steps": [500, 60, 500, 60]}
    worse = {"n_success": 0, "success": [False] * 4, "steps": [500] * 4}
    baselines = {
        "task": "reach-v3",
        "seeds": [10, 11, 12, 13],
        "constant": {"action": [0, 0, 0, 1], **worse},
        "blind_replays": [{"episode_index": 7, **replay}, {"episode_index": 0, **worse}],
    }
    (run / "baselines.json").write_text(json.dumps(baselines))
    (run / "train.log").write_text(LOG)


def test_the_table_joins_evaluations_and_baselines_by_seed(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows, _ = read_rows(tmp_path)
    assert [(row.name, row.n_success) for row in rows] == [
        ("policy", 3),
        ("blind replay of demonstration 7 (strongest)", 2),
        ("blind replay of demonstration 0", 0),
        ("constant mean action", 0),
    ]
    assert rows[0].success == {10: True, 11: True, 12: False, 13: True}
    assert rows[0].as_json()["wilson_95"] == [0.3006, 0.9544]
    assert report_data.beyond_blind(rows) == (
        "Of the 2 seeds the strongest blind replay fails, the policy solves 1."
    )
    assert report_data.seed_table(rows).rows[2] == ["12", "-", "-", "-", "-"]


def test_success_on_a_task_that_needs_no_eyes_is_called_that() -> None:
    everywhere = {1: True, 2: True}
    sentence = report_data.beyond_blind([Row("policy", everywhere), Row("blind", everywhere)])
    assert sentence.endswith("success here says nothing about vision.")


def test_the_training_log_gives_exact_steps(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    log = read_training_log(tmp_path / "train.log")
    assert log.train["loss"] == {50: 2.962, 1450: 0.291}
    assert log.train["first_step_accuracy"] == {50: 0.409, 1450: 0.814}
    assert log.train["lr"] == {50: 1.5e-3, 1450: 8.3e-4}
    assert log.validation == {500: 0.3571, 1500: 0.2671}


def test_a_resumed_log_counts_a_repeated_step_once(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG + LOG.replace("loss:0.291", "loss:0.300"))
    assert read_training_log(tmp_path / "train.log").train["loss"] == {50: 2.962, 1450: 0.300}


def test_missing_and_contradictory_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"eval_info\.json is missing: nothing was evaluated"):
        read_evaluations(tmp_path)
    write_run(tmp_path)
    (tmp_path / "train.log").write_text("Killed\n")
    with pytest.raises(ReportError, match=r"train\.log holds no training row"):
        read_training_log(tmp_path / "train.log")
    write_evaluation(tmp_path, 13, [True])
    with pytest.raises(ReportError, match="repeats seed 13"):
        read_evaluations(tmp_path)
    write_evaluation(tmp_path, 14, [True], n_tasks=2)
    (tmp_path / "eval_seed13" / "eval_info.json").unlink()
    with pytest.raises(ReportError, match="is about 2 tasks"):
        read_evaluations(tmp_path)


def test_a_seed_without_baseline_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_evaluation(tmp_path, 20, [True])
    with pytest.raises(ReportError, match=r"baselines\.json lacks 1 seeds .* \(the first is 20\)"):
        read_rows(tmp_path)


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    (tmp_path / "baselines.json").unlink()
    assert report.main(["--run", str(tmp_path), "--hz", "80"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'baselines.json'} is missing\n"


def test_the_page_is_one_file_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    stages.main([str(tmp_path / "stages.json"), "add", "train", "100"])
    stages.main([str(tmp_path / "stages.json"), "finish", "train", "25"])
    recorded = np.zeros((6, 4), np.float32)
    prediction = {
        "predicted": recorded + np.array([0.5, 0, 0, 0], np.float32),
        "recorded": recorded,
        "episode": 9,
        "held_out": True,
        "names": ["dx", "dy", "dz", "gripper"],
    }
    monkeypatch.setattr(report_plots, "predict_episode", lambda *_: prediction)
    assert report.main(["--run", str(tmp_path), "--hz", "80"]) == 0
    page = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["action_mean_absolute_error"] == {"dx": 0.5, "dy": 0.0, "dz": 0.0, "gripper": 0.0}
    assert numbers["stage_seconds"] == {"train": 125.0}
    assert [row["n_success"] for row in numbers["rows"]] == [3, 2, 0, 0]
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "3 of 4" in text and "30 to 95 %" in text and "2 min 05 s" in text
    assert "not measured: the evaluation wrote no videos." in text
    if has_browser():
        assert "30 to 95 %" in open_page(page, tmp_path)


def test_times_that_were_not_taken_are_called_not_measured(tmp_path: Path) -> None:
    assert report_data.stage_table(report_data.read_stages(tmp_path / "stages.json")).rows == [
        ["all", "not measured"]
    ]


def test_the_film_shows_every_episode_to_its_end(tmp_path: Path) -> None:
    from lerobot.utils.io_utils import write_video

    videos: dict[int, Path] = {}
    for seed, frames in ((5, 3), (6, 9)):
        videos[seed] = tmp_path / f"{seed}.mp4"
        write_video(videos[seed], [np.full((48, 48, 3), 100, np.uint8)] * frames, 80)
    film = tmp_path / "film.mp4"
    assert report_plots.make_film(videos, {5: True, 6: False}, film) == [5, 6]
    import av

    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(pictures) == 9
    assert pictures[-1].shape == (240, 480, 3)
    border = pictures[-1][120, [1, 478]].astype(int)  # left edge of a success, right edge of a failure
    assert border[0, 1] > border[0, 0] + 40
    assert border[1, 0] > border[1, 1] + 40


def test_predictions_are_first_steps_in_the_robots_units(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "dataset", episodes=2, frames=5)
    torch.manual_seed(0)
    config = make_config()
    checkpoint = tmp_path / "checkpoint"
    VLA0Policy(config).save_pretrained(checkpoint)
    preprocess, postprocess = make_vla0_pre_post_processors(config, make_stats(low=-2.0, high=6.0))
    preprocess.save_pretrained(checkpoint)
    postprocess.save_pretrained(checkpoint)
    (checkpoint / "train_config.json").write_text(json.dumps({"dataset": {"eval_split": 0.5}}))

    result: dict[str, Any] = report_plots.predict_episode(checkpoint, root, batch_size=2)

    assert (result["episode"], result["held_out"], result["names"]) == (1, True, ["x", "y"])
    assert result["recorded"][:, 0] == pytest.approx(np.arange(5, 10) / 10 * 8 - 2)
    assert result["predicted"].shape == (5, 2)
    # In the robot's units every value is one of the bins between the dataset's extremes, -2 and 6.
    levels = (result["predicted"] + 2.0) / 8.0 * config.n_bins
    assert levels == pytest.approx(np.round(levels), abs=1e-3)
    assert (result["predicted"] >= -2).all() and (result["predicted"] <= 6).all()
    assert np.abs(result["predicted"]).max() > 1  # normalised ones would not leave [-1, 1]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"none/config\.json is missing: no trained policy"):
        report_plots.predict_episode(tmp_path / "none", tmp_path)
