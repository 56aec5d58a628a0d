"""Evaluation folders for the tests, in the very form `lerobot-eval` 0.6.1 writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def eval_info(
    tasks: dict[tuple[str, int], list[bool]],
    *,
    seconds: float = 10.0,
    videos: dict[tuple[str, int], list[str]] | None = None,
) -> dict[str, Any]:
    """Return the content of an `eval_info.json`: outcomes by (suite, task id)."""
    per_task = [
        {
            "task_group": suite,
            "task_id": task_id,
            "metrics": {
                "sum_rewards": [float(i) + 0.25 for i, _ in enumerate(successes)],
                "max_rewards": [1.0 * success for success in successes],
                "successes": successes,
                "video_paths": (videos or {}).get((suite, task_id), []),
                "predicted_video_paths": [],
            },
        }
        for (suite, task_id), successes in tasks.items()
    ]
    outcomes = [success for successes in tasks.values() for success in successes]
    overall = {
        "avg_sum_reward": 0.0,
        "avg_max_reward": 0.0,
        "pc_success": 100 * sum(outcomes) / max(1, len(outcomes)),
        "n_episodes": len(outcomes),
        "eval_s": seconds,
        "eval_ep_s": seconds / max(1, len(outcomes)),
        "video_paths": [],
        "predicted_video_paths": [],
    }
    return {"per_task": per_task, "per_group": {}, "overall": overall}


def write_evaluation(
    folder: Path, tasks: dict[tuple[str, int], list[bool]], *, n_videos: int = 0, seconds: float = 10.0
) -> Path:
    """Write the folder of one `lerobot-eval`, with this many (empty) videos per task; returns it."""
    videos = {}
    for (suite, task_id), successes in tasks.items():
        place = folder / "videos" / f"{suite}_{task_id}"
        place.mkdir(parents=True, exist_ok=True)
        files = [place / f"eval_episode_{i}.mp4" for i in range(min(n_videos, len(successes)))]
        for file in files:
            file.write_bytes(b"")
        # As lerobot-eval writes them: relative to where it ran, not to the folder.
        videos[suite, task_id] = [f"somewhere/else/{file.relative_to(folder)}" for file in files]
    (folder / "eval_info.json").write_text(
        json.dumps(eval_info(tasks, seconds=seconds, videos=videos), indent=2)
    )
    return folder
