"""Write the report of a demo run: what the policy solves, beside two baselines that see nothing.

    python examples/demo/report.py --run outputs/demo/button-press-topdown-v3 --hz 80

Reads DIR/eval_seed*/eval_info.json, DIR/baselines.json, DIR/train.log, DIR/stages.json, the last checkpoint
and the dataset; writes DIR/report/ (index.html, which needs no other file, report.md, report.json, pictures,
film). The last line printed is the path of the page. Every number comes from those files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import report_data as data

from lerobot_policy_vla0.tools.reporting.pages import (
    data_url,
    html_image,
    html_table,
    html_text,
    markdown_table,
    page,
)

EMBED_LIMIT = 8 * 2**20  # bytes; a larger film is linked

STYLE = """
p.result { font-size: 1.25rem; } table.success tr:first-child td { font-weight: 600; }
table.seeds, table.stages { font-size: .85rem; }
"""


def film_html(film: Path, seeds: list[int], speed: float) -> str:
    """Return the film, embedded if it is small, with a caption. `speed` 1 is real time."""
    if not seeds:
        return html_text("not measured: the evaluation wrote no videos.")
    source = data_url(film.read_bytes(), "video/mp4") if film.stat().st_size < EMBED_LIMIT else film.name
    return (
        f'<figure><video src="{source}" controls autoplay loop muted playsinline></video><figcaption>'
        f"Seeds {', '.join(map(str, seeds))}, at {speed:g} of real speed; green: solved, red: not solved."
        "</figcaption></figure>"
    )


def write_report(run: Path, hz: float) -> Path:
    """Write the report of the run in `run`; returns the path of the page.

    Args:
        run: Folder of the run, as a demo fills it.
        hz: Actions per second in the simulation.

    Raises:
        ReportError: names the file that is missing or does not fit the others.
    """
    rows, videos = data.read_rows(run)
    log = data.read_training_log(run / "train.log")
    stages = data.read_stages(run / "stages.json")
    task = data.read_json(run / "baselines.json")["task"]

    import report_plots as plots  # late: a missing file is reported before anything heavy is imported

    prediction = plots.predict_episode(run / "train/checkpoints/last/pretrained_model", run / "dataset")
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    loss = plots.plot_loss(log)
    action_plot, errors = plots.plot_actions(prediction)
    (folder / "loss.png").write_bytes(loss)
    (folder / "actions.png").write_bytes(action_plot)
    film = folder / "evaluation.mp4"
    shown = plots.make_film(videos, rows[0].success, film)

    success, by_seed, times = data.success_table(rows), data.seed_table(rows), data.stage_table(stages)
    sentence = data.beyond_blind(rows)
    which = "held out of training" if prediction["held_out"] else "seen in training (no eval_split was set)"
    actions = (
        f"Demonstration {prediction['episode']}, {which}: the first step of each predicted chunk while the "
        "policy is shown the expert's frames. Actions are in the environment's units, -1 to 1."
    )
    last = max(log.train["loss"])
    validation = f"{log.validation[max(log.validation)]:.3f}" if log.validation else "not measured"
    losses = (
        f"Training loss {log.train['loss'][last]:.3f} at step {last:.0f}; last validation loss {validation}."
    )

    markdown = [
        f"# {task}: policy and baselines",
        markdown_table(success),
        sentence,
        "## Training",
        losses,
        "![loss](loss.png)",
        "## Predicted and recorded actions",
        actions,
        "![actions](actions.png)",
        "## Wall time",
        markdown_table(times),
        "## By seed",
        markdown_table(by_seed),
    ]
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n")
    numbers = {
        "task": task,
        "rows": [row.as_json() for row in rows],
        "training": {
            "steps": last,
            "loss": log.train["loss"][last],
            "validation_loss_by_step": log.validation,
        },
        "action_mean_absolute_error": dict(zip(prediction["names"], errors, strict=True)),
        "stage_seconds": stages,
    }
    (folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    sections = [
        ("Success", html_table(success, "success") + html_text(sentence, name="result")),
        ("Evaluation", film_html(film, shown, plots.FILM_FPS / hz)),
        ("Training", html_image(loss, losses)),
        ("Predicted and recorded actions", html_image(action_plot, actions)),
        ("Wall time", html_table(times, "stages")),
        ("By seed", html_table(by_seed, "seeds")),
    ]
    lead = (
        f"{len(rows[0].success)} start positions that training never saw; every policy plays the same ones."
    )
    index = folder / "index.html"
    index.write_text(page(task, lead, sections, STYLE))
    print(markdown_table(success), sentence, losses, sep="\n\n")
    print("\n" + markdown_table(times) + "\n")
    return index


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, as a demo fills it")
    parser.add_argument("--hz", type=float, required=True, help="actions per second in the simulation")
    options = parser.parse_args(arguments)
    try:
        page = write_report(options.run, options.hz)
    except data.ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
