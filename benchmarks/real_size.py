"""Peak memory and wall time of what a user does with a model of real size, each stage in a process of its own.

    python benchmarks/real_size.py [--vlm tiny | qwen2.5-vl-3b-random] [--stages NAME ...] [--keep DIR] [--output FILE]

Stages: a random backbone in bfloat16, files as on the Hub; a few made-up demonstrations in LIBERO's shape; two steps
of LoRA through `lerobot-train`; `vla0 merge --save-dtype bfloat16`; `vla0 import` of the same backbone in the
official layout; `from_pretrained`, as saved and with float32 weights; two chunks; one through the reference decoder,
one through the fast one, and that one again with itself as the draft; three steps of `lerobot-eval`. A stage that
fails is reported with the end of its output, and the others go on if they can. Prints a table and, last, one line of
JSON. What a weight says changes neither memory nor time, so the weights are random.

The 3B takes 15 GB of disk. ``--keep`` says where, and leaves it there: a later call with other stages goes on from it
and adds to its results.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hardware import hardware

#: The sizes to choose from.
VLMS = ("tiny", "qwen2.5-vl-3b-random")
#: Bytes of a file of weights, as the Hub's are cut: the 3B comes in two.
SHARD = 4_000_000_000
#: LIBERO's shape: two cameras, eight steps of seven integers up to 1000.
CAMERAS, SIDE, ACTION_DIM, STATE_DIM = ("observation.images.image", "observation.images.image2"), 224, 7, 8
CHUNK, N_BINS = 8, 1000
REPO_ID = "local/real-size"
#: What the paper's program writes beside its weights.
OFFICIAL_CONFIG = f"""\
DATALOADER:
  ROBOVERSE:
    cfg_opts: IMAGE.crop_img:0.875:IMAGE.img_size:{SIDE}:IMAGE.cam_list:('3p1','3p2')
EXP:
  MODEL: qwen
MODEL:
  QWEN:
    add_vision_id: true
    history: 1
    horizon: {CHUNK}
    num_bins_actions: {N_BINS}
    num_cam: {len(CAMERAS)}
    original_action_dim: {ACTION_DIM}
    rgb_img_size:
    - {SIDE}
    - {SIDE}
    tiled_rgb_imgs: true
"""
#: Two float32 scores of bfloat16 states: sums in another order were seen to move each by 0.011.
NEAR_TIE = 0.04
#: A child's line with figures of its own begins with this.
FIGURES = "figures: "


@dataclass(frozen=True)
class Place:
    """Where everything lies, and what is measured.

    Attributes:
        root: the folder of all files.
        vlm: one of `VLMS`.
        processor: the real tokenizer's folder; the tiny model brings its own.
    """

    root: Path
    vlm: str
    processor: Path

    @property
    def backbone(self) -> Path:
        return self.root / "backbone"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def adapter(self) -> Path:
        return self.run / "checkpoints" / "last" / "pretrained_model"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def official(self) -> Path:
        return self.root / "official"

    @property
    def imported(self) -> Path:
        return self.root / "imported"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"


# ------------------------------------------------------------------ stages, each in a process of its own


def build(place: Place) -> None:
    """Write a random backbone in bfloat16: config, tokenizer and, one after the other, the files of weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from lerobot_policy_vla0 import TinyVLMConfig
    from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
    from lerobot_policy_vla0.tools.inspection.cost import vlm_config_3b

    if place.vlm == "tiny":
        tokenizer = build_tiny_tokenizer()
        config = tiny_vlm_config(TinyVLMConfig(), tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(place.processor)
        config = vlm_config_3b(tokenizer)
    config.dtype = torch.bfloat16
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(place.backbone)
    tokenizer.save_pretrained(place.backbone)

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    shards: list[dict[str, torch.Size]] = [{}]
    room = SHARD
    for name, parameter in model.named_parameters():  # a tied tensor is there once
        if 2 * parameter.numel() > room:
            shards.append({})
            room = SHARD
        room -= 2 * parameter.numel()
        # The Hub's files have the names of earlier versions of transformers.
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        shards[-1][name] = parameter.shape
    torch.manual_seed(0)
    weight_map = {}
    for index, shapes in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {name: random_weight(name, shape) for name, shape in shapes.items()}
        save_file(tensors, place.backbone / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shapes, file))
        del tensors
    parameters = sum(p.numel() for p in model.parameters())
    index_text = json.dumps({"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map})
    (place.backbone / "model.safetensors.index.json").write_text(index_text)
    report(parameters=parameters, files=len(shards))


def random_weight(name: str, shape: Any) -> Any:
    """Return what an untrained model has: ones in norms, zeros as biases, else a normal distribution."""
    import torch

    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return tensor.zero_()
    return tensor.fill_(1) if tensor.ndim == 1 else tensor.normal_(std=0.02)


def record(place: Place) -> None:
    """Write two short demonstrations in LIBERO's shape."""
    import numpy as np
    from lerobot.datasets import LeRobotDataset

    image = {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id=REPO_ID,
        root=place.dataset,
        fps=10,
        use_videos=False,
        features={
            **dict.fromkeys(CAMERAS, image),
            "observation.state": {"dtype": "float32", "shape": (STATE_DIM,), "names": None},
            "action": {"dtype": "float32", "shape": (ACTION_DIM,), "names": None},
        },
    )
    rng = np.random.default_rng(0)
    for task in ("put the bowl on the plate", "turn on the stove"):
        for _ in range(10):
            pictures = {key: rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for key in CAMERAS}
            action = rng.uniform(-1, 1, ACTION_DIM).astype(np.float32)
            state = np.zeros(STATE_DIM, np.float32)
            dataset.add_frame({**pictures, "observation.state": state, "action": action, "task": task})
        dataset.save_episode()
    dataset.finalize()
    report(frames=20)


def train(place: Place) -> None:
    """Become `lerobot-train` for two steps of LoRA on a bfloat16 base, as configs/so100_lora.yaml asks for."""
    become(
        "lerobot-train",
        "--policy.type=vla0",
        f"--policy.vlm_model_name={place.backbone}",
        f"--policy.device={device()}",
        "--policy.dtype=bfloat16",
        "--policy.param_dtype=bfloat16",
        "--policy.gradient_checkpointing=true",
        f"--policy.chunk_size={CHUNK}",
        f"--policy.n_action_steps={CHUNK}",
        "--policy.ensemble_n_chunks=1",
        f"--policy.n_bins={N_BINS}",
        "--policy.push_to_hub=false",
        "--peft.method_type=LORA",
        "--peft.r=16",
        "--peft.lora_alpha=32",
        f"--dataset.repo_id={REPO_ID}",
        f"--dataset.root={place.dataset}",
        "--batch_size=2",
        "--steps=2",
        "--log_freq=1",
        "--save_freq=2",
        "--env_eval_freq=0",
        "--num_workers=0",
        f"--output_dir={place.run}",
    )


def merge(place: Place) -> None:
    """Become `vla0 merge`, to bfloat16."""
    become("vla0", "merge", str(place.adapter), "--out", str(place.merged), "--save-dtype", "bfloat16")


def import_official(place: Place) -> None:
    """Lay the backbone out as the paper's program leaves a checkpoint, and become `vla0 import`."""
    import numpy as np

    model = place.official / "model_last"
    shutil.rmtree(place.official, ignore_errors=True)
    model.mkdir(parents=True)
    for file in place.backbone.iterdir():
        os.link(file, model / file.name)  # 7.5 GB need not be there twice
    sampling = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6}
    (model / "generation_config.json").write_text(json.dumps(sampling))
    (model / "preprocessor_config.json").write_text(json.dumps({"patch_size": 14}))
    (place.official / "config.yaml").write_text(OFFICIAL_CONFIG)
    bounds = {"min": -np.ones(ACTION_DIM, np.float32), "max": np.ones(ACTION_DIM, np.float32)}
    (place.official / "dataset_stats.pkl").write_bytes(pickle.dumps({"out_ori_act": bounds}, protocol=4))
    become("vla0", "import", str(place.official), "--out", str(place.imported))


def load_imported(place: Place) -> None:
    """Load the imported policy as it was saved."""
    load_policy(place, param_dtype="bfloat16", folder=place.imported)


def load(place: Place) -> None:
    """Load the merged policy as it was saved: weights in bfloat16."""
    load_policy(place, param_dtype="bfloat16")


def load_float32(place: Place) -> None:
    """Load the same files into float32 weights, which the default ``param_dtype`` is."""
    load_policy(place, param_dtype="float32")


def chunk(place: Place) -> None:
    """Load the merged policy and answer two made-up observations: the first call also builds the decoder."""
    import torch
    from lerobot.policies.factory import make_pre_post_processors

    policy = load_policy(place, param_dtype="bfloat16")
    preprocess, postprocess = make_pre_post_processors(policy.config, str(place.merged))
    generator = torch.Generator().manual_seed(0)
    times, action = [], None
    for _ in range(2):
        observation = made_up_observation(generator)
        began = time.perf_counter()
        action = postprocess(policy.predict_action_chunk(preprocess(observation)))
        times.append(round(time.perf_counter() - began, 2))
    assert action is not None and tuple(action.shape) == (1, CHUNK, ACTION_DIM), action
    assert bool(action.isfinite().all()), action
    report(first_chunk_s=times[0], second_chunk_s=times[1])


def reference(place: Place) -> None:
    """Answer an observation with the reference decoder, with the fast one, and again with that answer as the draft."""
    from dataclasses import replace

    import torch
    from lerobot.policies.factory import make_pre_post_processors

    from lerobot_policy_vla0.decoding.factory import build_decoder

    policy = load_policy(place, param_dtype="bfloat16")
    preprocess, _ = make_pre_post_processors(policy.config, str(place.merged))
    request = policy.make_request(preprocess(made_up_observation(torch.Generator().manual_seed(0))))

    def decode(decoder: Any, request: Any) -> Any:
        with torch.no_grad(), policy._autocast():
            decoder.decode(request)
        return decoder.last

    decoders = {
        name: build_decoder(replace(policy.config, decoder=name), policy.vlm, request.ids.device)
        for name in ("reference", "speculative")
    }
    oracle = decode(decoders["reference"], request)
    fast = decoders["speculative"]
    lean = decode(fast, request)
    right, wrong = oracle.traces[0], lean.traces[0]
    margin = margin_at_difference(right, wrong.symbols)
    assert margin is None or margin <= NEAR_TIE, f"not the reference's answer, which it preferred by {margin}"
    score, prefill, widths = fast.runner.score, fast.runner.prefill, []

    def seen(run: Any) -> Any:
        def noting(*arguments: Any) -> Any:
            widths.append(int(arguments[-1].symbols.shape[1]))
            return run(*arguments)

        return noting

    fast.runner.score, fast.runner.prefill = seen(score), seen(prefill)
    again = decode(fast, replace(request, steps_since=0))
    # Wider passes add in another order, so an undecided symbol may fall the other way, and the rest with it.
    changed = margin_at_difference(wrong, again.traces[0].symbols)
    assert changed is None or changed <= NEAR_TIE, (
        f"another answer, where the first was preferred by {changed}"
    )
    if changed is None:
        assert again.accepted == again.drafted, f"{again.accepted} of {again.drafted} guesses were right"
    report(
        equal=margin is None,
        margin_at_first_difference=margin,
        repeated=changed is None,
        margin_where_it_changed=changed,
        drafted=again.drafted,
        accepted=again.accepted,
        reference_passes=oracle.passes,
        reference_s=round(oracle.milliseconds / 1e3, 3),
        fast_passes=lean.passes,
        fast_s=round(lean.milliseconds / 1e3, 3),
        asked_again_passes=again.passes,
        asked_again_s=round(again.milliseconds / 1e3, 3),
        asked_again_widths=widths,
    )


def margin_at_difference(trace: Any, other: list[int]) -> float | None:
    """Return by how much a trace preferred its symbol where another answer first differs; None if it never does."""
    import numpy as np

    if trace.symbols == other:
        return None
    at = next(k for k, (a, b) in enumerate(zip(trace.symbols, other, strict=False)) if a != b)
    scores = np.asarray(trace.scores[at])
    return float(scores[trace.symbols[at]] - scores[other[at]])


def evaluate(place: Place) -> None:
    """Become `lerobot-eval` on an environment of three steps with LIBERO's observations."""
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    become(
        "lerobot-eval",
        f"--policy.path={place.merged}",
        f"--policy.device={device()}",
        "--policy.param_dtype=bfloat16",
        "--env.discover_packages_path=two_cameras",
        "--env.type=two_cameras",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={place.evaluation}",
    )


def made_up_observation(generator: Any) -> dict[str, Any]:
    """Return what a robot in LIBERO's shape would see."""
    import torch

    pictures = {key: torch.rand(3, SIDE, SIDE, generator=generator) for key in CAMERAS}
    return {**pictures, "observation.state": torch.zeros(STATE_DIM), "task": "put the bowl on the plate"}


@dataclass(frozen=True)
class Stage:
    """What runs in a process of its own.

    Attributes:
        run: what it does there.
        what: for the table.
        needs: the folders it reads, with the stage that makes each.
    """

    run: Callable[[Place], Any]
    what: str
    needs: dict[str, str] = field(default_factory=dict)


#: In the order they run in.
STAGES = {
    "build": Stage(build, "write a random backbone, bfloat16"),
    "record": Stage(record, "write demonstrations"),
    "train": Stage(train, "lerobot-train, 2 steps of LoRA", {"backbone": "build", "dataset": "record"}),
    "merge": Stage(merge, "vla0 merge --save-dtype bfloat16", {"adapter": "train"}),
    "import": Stage(import_official, "vla0 import, the official layout", {"backbone": "build"}),
    "load_imported": Stage(load_imported, "from_pretrained, imported", {"imported": "import"}),
    "load": Stage(load, "from_pretrained, bfloat16", {"merged": "merge"}),
    "load_float32": Stage(load_float32, "from_pretrained, float32", {"merged": "merge"}),
    "chunk": Stage(chunk, "from_pretrained and two chunks", {"merged": "merge"}),
    "reference": Stage(reference, "reference, fast, again as its draft", {"merged": "merge"}),
    "eval": Stage(evaluate, "lerobot-eval, three steps", {"merged": "merge"}),
}


# ------------------------------------------------------------------ inside a stage


def report(**figures: Any) -> None:
    """Hand figures to the parent process."""
    print(FIGURES + json.dumps(figures), flush=True)


def become(command: str, *arguments: str) -> None:
    """Replace this process by a command of the environment Python runs in."""
    program = Path(sys.executable).with_name(command)
    os.execv(program, [str(program), *arguments])


def device() -> str:
    """Return where models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(place: Place, param_dtype: str, folder: Path | None = None) -> Any:
    """Load the merged policy, or one in another folder, and report what it holds."""
    from lerobot.configs.policies import PreTrainedConfig

    from lerobot_policy_vla0 import VLA0Config, VLA0Policy

    folder = folder or place.merged
    config = PreTrainedConfig.from_pretrained(folder)
    assert isinstance(config, VLA0Config)
    config.param_dtype, config.device = param_dtype, device()
    before = resident_bytes(os.getpid(), "VmRSS")
    began = time.perf_counter()
    policy = VLA0Policy.from_pretrained(folder, config=config)
    spent = time.perf_counter() - began
    held = sum(p.numel() * p.element_size() for p in policy.parameters())
    report(
        from_pretrained_s=round(spent, 2), weights_gb=round(held / 1e9, 4), before_gb=round(before / 1e9, 2)
    )
    return policy


# ------------------------------------------------------------------ the parent process


def measure(name: str, place: Place) -> dict[str, Any]:
    """Run one stage in a process of its own.

    Returns:
        Seconds by the clock and of all cores; peak memory in GB (1e9 bytes), of all resident pages and of those that no
        file has; the stage's own figures. ``failed`` with the reason and ``output`` with its end if it did not work,
        ``skipped`` with the reason if it could not.
    """
    absent = [
        f"{folder} (stage {by})"
        for folder, by in STAGES[name].needs.items()
        if not getattr(place, folder).is_dir()
    ]
    if absent:
        return {"skipped": f"needs {', '.join(absent)}"}
    log = place.root / f"{name}.log"
    command = [sys.executable, __file__, "--inside", name, "--keep", str(place.root)]
    command += ["--vlm", place.vlm, "--processor", str(place.processor)]
    began = time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        anonymous = 0
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max(anonymous, resident_bytes(child.pid, "RssAnon"))
            time.sleep(0.02)
    child.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {
        "s": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(1024 * usage.ru_maxrss / 1e9, 2),  # Linux counts in KiB
        "peak_anonymous_gb": round(anonymous / 1e9, 2),
    }
    lines = log.read_text(errors="replace").splitlines()
    for line in lines:
        if line.startswith(FIGURES):
            result |= json.loads(line.removeprefix(FIGURES))
    if "weights_gb" in result:
        taken = result["peak_gb"] - result["before_gb"]
        result["peak_over_weights"] = round(taken / result["weights_gb"], 3)
    if child.returncode:
        result |= {"failed": f"exit status {child.returncode}", "output": lines[-15:]}
    return result


def resident_bytes(pid: int, kind: str) -> int:
    """Return what /proc says of a process: ``RssAnon`` (no file's pages), ``VmRSS`` (all); 0 if it has just ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith(kind)]
    return 1024 * int(lines[0].split()[1]) if lines else 0


def row(name: str, result: dict[str, Any]) -> str:
    """Return one line of the table."""
    what = STAGES[name].what
    if "skipped" in result:
        return f"{what:<36} not measured: {result['skipped']}"
    known = ("s", "cpu_s", "commit", "peak_gb", "peak_anonymous_gb", "failed", "output")
    extra = ", ".join(f"{key} {value}" for key, value in result.items() if key not in known)
    if "failed" in result:
        extra = f"FAILED, {result['failed']}; the end of its output:\n  " + "\n  ".join(result["output"])
    numbers = (result[key] for key in ("s", "cpu_s", "peak_gb", "peak_anonymous_gb"))
    return f"{what:<36}{''.join(f'{number:>11.2f}' for number in numbers)}  {extra}"


def run_stages(place: Place, names: list[str]) -> dict[str, dict[str, Any]]:
    """Run the stages one after the other and print the table as it grows."""
    print(
        f"{place.vlm} in {place.root}\n{'stage':<36}{'s':>11}{'CPU s':>11}{'peak GB':>11}{'anonymous':>11}",
        flush=True,
    )
    kept = place.root / "stages.json"
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in (name for name in STAGES if name in names):
        results[name] = {**measure(name, place), "commit": commit()}
        kept.write_text(json.dumps(results))  # after each stage: a stopped run has measured something
        print(row(name, results[name]), flush=True)
    return {name: results[name] for name in STAGES if name in results}


def commit() -> str:
    """Return the commit of the package that the stages import."""
    found = find_spec("lerobot_policy_vla0")
    assert found is not None and found.origin is not None, "lerobot_policy_vla0 is not installed"
    folder = str(Path(found.origin).parent)
    answer = subprocess.run(
        ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def main() -> None:
    """Parse arguments, run the stages, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", choices=VLMS, default="tiny")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME")
    parser.add_argument("--keep", type=Path, help="folder to work in and leave; else a temporary one")
    parser.add_argument(
        "--processor",
        type=Path,
        default=Path("../shared/qwen2_5_vl_processor"),
        help="folder with the 3B's tokenizer",
    )
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    parser.add_argument("--inside", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        STAGES[arguments.inside].run(Place(arguments.keep, arguments.vlm, arguments.processor))
        return
    if arguments.vlm != "tiny" and not (arguments.processor / "tokenizer.json").is_file():
        parser.exit(
            message=f"not measured: there is no tokenizer.json in {arguments.processor}. Download the tokenizer of "
            "Qwen/Qwen2.5-VL-3B-Instruct and give its folder with --processor.\n"
        )
    with TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        results = run_stages(
            Place(root.resolve(), arguments.vlm, arguments.processor.resolve()), arguments.stages
        )
    command = "python benchmarks/real_size.py " + " ".join(sys.argv[1:])
    line = json.dumps(
        {"benchmark": "real_size", "vlm": arguments.vlm, "stages": results, **hardware(), "command": command}
    )
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)
    if any("failed" in result for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
