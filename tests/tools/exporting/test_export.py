"""`vla0 export`: transformers loads it without this package and answers as the policy does; nothing else gets in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.backbones import FAMILIES, save_random_backbone
from helpers.exports import messages, save_policy, sent_pictures, two_cameras, write_png
from helpers.tiny import make_batch, make_config
from lerobot.policies.act.configuration_act import ACTConfig
from safetensors import safe_open
from safetensors.torch import load_file

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import CheckpointError, OutputError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.exporting.export import export_policy
from lerobot_policy_vla0.tools.exporting.weights import model_name
from lerobot_policy_vla0.tools.importing.tensors import policy_name

# ------------------------------------------------------------------ as transformers writes it


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_config_are_those_that_transformers_saves(tmp_path: Path, family: str) -> None:
    backbone = save_random_backbone(tmp_path / "backbone", FAMILIES[family]())
    policy = VLA0Policy(make_config(vlm_model_name=str(backbone)))
    export_policy(save_policy(policy, tmp_path / "policy"), tmp_path / "out")
    policy.vlm.model.save_pretrained(tmp_path / "theirs")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "out"))
    assert one == two


def test_names_are_the_inverse_of_the_imports(trained: Path) -> None:
    names = [name for name in load_file(trained / "model.safetensors") if name.startswith("vlm.")]
    assert len(names) > 40
    for name in names:
        assert policy_name(model_name(name)) == name


def test_the_precision_is_the_one_asked_for(trained: Path, exported: Path, tmp_path: Path) -> None:
    export_policy(trained, tmp_path / "out", dtype="bfloat16")
    full, half = (load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "out"))
    for name, tensor in full.items():
        assert tensor.dtype == torch.float32
        assert half[name].dtype == torch.bfloat16 and torch.equal(half[name], tensor.bfloat16())
    config = json.loads((tmp_path / "out/config.json").read_text())
    stated = [part["dtype"] for part in (config, config["text_config"], config["vision_config"])]
    assert stated == ["bfloat16"] * 3


def test_engines_sample_as_the_policy_does_unless_a_request_says_otherwise(exported: Path) -> None:
    written = json.loads((exported / "generation_config.json").read_text())
    end, pad = 258, 256  # <|im_end|>, <|endoftext|>: vLLM's grammar lets every end token cut a number short
    assert written == {
        "do_sample": False,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


# ------------------------------------------------------------------ without this package

_STRANGER = """
import importlib.util, json, sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "lerobot_policy_vla0").is_dir()]
assert importlib.util.find_spec("lerobot_policy_vla0") is None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder)
model, loaded = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not any(loaded.values()), loaded
answers = []
for pictures, chat in asked:
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(name) for name in pictures], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    answers.append(ids.tolist())
print(json.dumps(answers))
"""


def test_a_program_without_this_package_gets_the_policys_tokens(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    policy = VLA0Policy.from_pretrained(trained)
    batch = make_batch(policy.config)
    asked = []
    for row, pictures in enumerate(sent_pictures(policy.config, batch)):
        names = [str(write_png(p, tmp_path / f"{row}_{i}.png")) for i, p in enumerate(pictures)]
        asked.append((names, messages(policy.config, len(names))))
    finished = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(exported), json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    bins, _ = policy.codec.actions_to_bins(policy.predict_action_chunk(batch))
    answers = [
        ids[: ids.index(policy.vlm.tokens.end) + 1] for ids in policy.codec.encode_bins(bins).ids.tolist()
    ]
    assert answers[0] != answers[1]
    assert json.loads(finished.stdout.splitlines()[-1]) == answers


# ------------------------------------------------------------------ the robot's part


def test_the_robots_folder_is_the_policys_without_weights(trained: Path, exported: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    policy, robot = files(trained), files(exported / "robot")
    del policy["model.safetensors"]
    own = robot.pop("own_tensors.safetensors")
    assert robot == policy
    assert len(own) < 200


def test_a_robots_folder_alone_says_what_it_is_and_the_two_ways_out(exported: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        VLA0Policy.from_pretrained(exported / "robot")
    assert f"{exported / 'robot'} is the robot's part of an export" in str(refused.value)
    assert "--policy.engine=http://HOST:PORT/v1" in str(refused.value)
    assert "vla0 import EXPORT --out DIR" in str(refused.value)


def test_an_export_given_as_a_policy_says_where_the_robots_part_is(exported: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"not a policy folder. The robot's part of it is {exported}/robot;"
    ):
        VLA0Policy.from_pretrained(exported)


# ------------------------------------------------------------------ refusals


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return what the command says when it refuses."""
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_taken_folder_stays_as_it_is(
    trained: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(exported.rglob("*"))
    assert "exists already; nothing is overwritten" in refusal(capsys, trained, "--out", exported)
    assert sorted(exported.rglob("*")) == before


def test_what_is_no_policy_is_refused(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "Point to a folder such as" in refusal(capsys, tmp_path / "empty", "--out", out)
    assert "is an export for inference engines" in refusal(capsys, exported, "--out", out)
    assert "is the robot's part of an export" in refusal(capsys, exported / "robot", "--out", out)
    backbone = save_random_backbone(tmp_path / "backbone", FAMILIES["Qwen2.5-VL-3B"]())
    assert "is a backbone (qwen2_5_vl), not a trained policy" in refusal(capsys, backbone, "--out", out)
    other = tmp_path / "act"
    ACTConfig(push_to_hub=False, device="cpu").save_pretrained(other)
    assert "is of a 'act' policy, expected 'vla0'" in refusal(capsys, other, "--out", out)
    assert not out.exists()


def test_a_policy_without_its_processors_is_refused(tmp_path: Path) -> None:
    policy = VLA0Policy(two_cameras())
    policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(
        CheckpointError, match=r"lacks \['policy_preprocessor.json', 'policy_postprocessor.json'\]"
    ):
        export_policy(tmp_path / "policy", tmp_path / "out")


def test_an_unknown_precision_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(trained), "--out", str(tmp_path / "out"), "--dtype=int8"])
    assert stopped.value.code == 2
    assert "invalid choice: 'int8'" in capsys.readouterr().err


def test_a_disk_without_room_is_said_before_anything_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot_policy_vla0 import output_files

    monkeypatch.setattr(output_files, "_free_bytes", lambda out: 1000)
    with pytest.raises(OutputError, match="Free some space"):
        export_policy(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
