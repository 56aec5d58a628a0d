"""The card of a published policy: what it is, how to run it, and what it may be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lerobot_policy_vla0.configuration_vla0 import HUB_TAGS, TINY, VLA0Config
from lerobot_policy_vla0.licenses import UNKNOWN_LICENSE, License, backbone_license


def build_model_card(
    config: VLA0Config,
    *,
    dataset: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
    training: Any = None,
    dataset_meta: Any = None,
    adapter_base: str | None = None,
) -> ModelCard:
    """Return the README of a policy repo.

    Args:
        config: the policy's, with its features.
        dataset: repo id of the training data, if known.
        license: licence of the policy; None, "unknown" and the backbone's own take the backbone's.
        tags: more tags for the Hub.
        training: LeRobot's ``TrainPipelineConfig``, if known.
        dataset_meta: LeRobot's metadata of the data set, if known.
        adapter_base: the backbone or policy that the policy's adapter was trained on, if it has an adapter.
    """
    base = config.vlm_model_name
    local = base == TINY or Path(base).is_dir()
    parent = adapter_base if config.use_peft and adapter_base else base
    private = parent == TINY or Path(parent).is_dir()
    inherited = None if local else backbone_license(base)
    if license == UNKNOWN_LICENSE or (inherited and license == inherited.id):
        license = None
    granted = License(license) if license else inherited
    extra: dict[str, Any] = {}
    if granted is not None and granted.name:
        extra = {"license_name": granted.name, "license_link": granted.link}
    if not private:
        extra["base_model_relation"] = "adapter" if config.use_peft else "finetune"
    data = ModelCardData(
        license=granted.id if granted else None,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=sorted({*HUB_TAGS, *(tags or []), *(["lora", "peft"] if config.use_peft else [])}),
        datasets=dataset,
        base_model=None if private else parent,
        **extra,
    )
    repo = config.repo_id or "YOUR_NAME/YOUR_POLICY"
    sections = [
        f"# {repo.rsplit('/', 1)[-1]}",
        "A [VLA-0](https://arxiv.org/abs/2510.13054) policy for [LeRobot](https://github.com/huggingface/lerobot): a "
        "vision-language model that answers images and an instruction with the robot's next actions, written as "
        f"{config.chunk_size * config.action_dim} integers from 0 to {config.n_bins}.",
        "## Facts\n\n" + _table(_facts(config, dataset, training, dataset_meta, parent)),
        _usage(config, repo, training, dataset_meta),
        "## Licence\n\n" + _license_text(base, local, inherited, license),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _facts(
    config: VLA0Config, dataset: str | None, training: Any, dataset_meta: Any, parent: str
) -> list[tuple[str, object]]:
    base = config.vlm_model_name
    low, high = {
        "MIN_MAX": ("minimum", "maximum"),
        "QUANTILES": ("1 %", "99 %"),
        "QUANTILE10": ("10 %", "90 %"),
    }[config.normalization_mapping["ACTION"].value]
    rows: list[tuple[str, object]] = [
        ("base model", "a small random Qwen2.5-VL (`tiny`), for tests" if base == TINY else f"`{base}`"),
        ("weights", f"a PEFT adapter on `{parent}`, which is needed too" if config.use_peft else "complete"),
        ("data set", f"`{dataset}`" if dataset else "not recorded"),
        (
            "cameras, in this order",
            ", ".join(f"`{key}` {tuple(config.image_features[key].shape)}" for key in config.camera_keys),
        ),
        ("image given to the model", f"{_pixels(config)} pixels"),
        (
            "action",
            f"{config.action_dim} dimensions; 0 to {config.n_bins} from the data set's {low} to its {high}",
        ),
        ("chunk", f"{config.chunk_size} steps predicted, {config.n_action_steps} executed per query"),
    ]
    if config.ensemble_n_chunks > 1:
        rows.append(("ensembling", f"mean of the last {config.ensemble_n_chunks} chunks"))
    if dataset_meta is not None:
        size = f"{dataset_meta.total_episodes} episodes, {dataset_meta.total_frames} frames at {dataset_meta.fps} fps"
        tasks = "; ".join(str(task) for task in dataset_meta.tasks.index[:5])
        more = max(0, len(dataset_meta.tasks.index) - 5)
        rows += [("data", size), ("tasks", tasks + (f" and {more} more" if more else ""))]
        if dataset_meta.robot_type:
            rows.append(("robot", dataset_meta.robot_type))
    if training is not None:
        rows.append(
            (
                "training",
                f"{training.steps} steps of batch {training.batch_size} per process, seed {training.seed}",
            )
        )
    return rows


def _pixels(config: VLA0Config) -> str:
    height, width = config.image_size
    count = len(config.camera_keys)
    if config.tile_images:
        return f"{width * count}x{height}" + (" (side by side)" if count > 1 else "")
    return f"{count} x {width}x{height}"


def _table(rows: list[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _usage(config: VLA0Config, repo: str, training: Any, dataset_meta: Any) -> str:
    extra = "[lora]" if config.use_peft else ""
    package = f'"lerobot_policy_vla0{extra}"' if extra else "lerobot_policy_vla0"
    environment = getattr(training, "env", None)
    env = (
        f"--env.type={environment.type} --env.task={environment.task}"
        if environment
        else "--env.type=ENV --env.task=TASK"
    )
    robot = getattr(dataset_meta, "robot_type", None) or "so100_follower"
    cameras = ", ".join(
        f"{key.rsplit('.', 1)[-1]}: {{type: opencv, index_or_path: {index}, width: {shape[2]}, height: {shape[1]}, "
        f"fps: {getattr(dataset_meta, 'fps', None) or 30}}}"
        for index, key in enumerate(config.camera_keys)
        for shape in [config.image_features[key].shape]
    )
    lines = [
        "## Run it",
        f"```bash\npip install {package}   # the plugin; brings LeRobot along\n```",
        f"In simulation:\n\n```bash\nlerobot-eval --policy.path={repo} {env} \\\n"
        "  --eval.n_episodes=10 --eval.batch_size=1\n```",
        "On a robot (its port, camera indices and the task are yours to fill in):\n\n```bash\n"
        f"lerobot-rollout --policy.path={repo} \\\n  --robot.type={robot} --robot.port=/dev/ttyACM0 \\\n"
        f'  --robot.cameras="{{ {cameras} }}" \\\n  --task="THE INSTRUCTION" --duration=60\n```',
        "In Python:\n\n```python\nfrom lerobot_policy_vla0 import VLA0Policy\n\n"
        f'policy = VLA0Policy.from_pretrained("{repo}")\n```',
    ]
    if config.use_peft:
        lines.append(
            "This is an adapter. To make a policy that does not need PEFT or the base model:\n\n```bash\n"
            f"vla0 merge {repo} --out merged\n```"
        )
    return "\n\n".join(lines)


def _license_text(base: str, local: bool, inherited: License | None, given: str | None) -> str:
    said = f"Published under `{given}`. " if given else ""
    if base == TINY:
        return said + "The backbone is random and has no licence of its own."
    if inherited is None:
        where = "a local folder on the training machine" if local else f"`{base}`"
        return (
            said
            + f"The base model is {where}: its licence applies to these weights too; look it up before using them."
        )
    name = f"`{inherited.name or inherited.id}`"
    text = f" ([text]({inherited.link}))" if inherited.link else ""
    return said + f"The base model `{base}` is under {name}{text}; weights trained from it inherit its terms."
