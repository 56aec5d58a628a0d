"""A policy is called written when its folder was read back; what does not fit the disk is said before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.official_checkpoint import write_paper_checkpoint
from helpers.tiny import make_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0 import output_files as writing
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.checkpoints import saved_policy as saving
from lerobot_policy_vla0.checkpoints.policy_folder import left_out, plan_tensors
from lerobot_policy_vla0.checkpoints.weight_stream import TensorSource, write_stream
from lerobot_policy_vla0.errors import CheckpointError, OutputError
from lerobot_policy_vla0.tools import merging
from lerobot_policy_vla0.tools.importing import checkpoint as official
from lerobot_policy_vla0.tools.importing.checkpoint import import_checkpoint
from lerobot_policy_vla0.tools.merging import merge_adapter

EMBEDDING = "vlm.model.model.language_model.embed_tokens.weight"
HEAD = "vlm.model.lm_head.weight"
NORM = "vlm.model.model.language_model.norm.weight"


def constant(value: Tensor) -> TensorSource:
    return TensorSource(tuple(value.shape), value.dtype, lambda: value)


def written_otherwise(
    tensors: Mapping[str, TensorSource | None], after: Callable[[Path], object] = lambda file: None
) -> Callable[..., None]:
    """Return a `write_stream` that changes tensors (None: leaves them out), and does something with the file."""

    def write(file: Path, planned: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> None:
        changed = {name: source for name, source in {**planned, **tensors}.items() if source is not None}
        write_stream(file, changed, metadata)
        after(file)

    return write


DAMAGES: dict[str, tuple[Callable[..., None], str]] = {
    "lost": (written_otherwise({HEAD: None}), rf"Missing tensors: {HEAD}\."),
    "twice": (written_otherwise({EMBEDDING: constant(torch.zeros(2))}), f"Unexpected tensors: {EMBEDDING}"),
    "shape": (written_otherwise({NORM: constant(torch.ones(3))}), rf"{NORM} is \(3,\), expected \(64,\)"),
    "precision": (
        written_otherwise({NORM: constant(torch.ones(64, dtype=torch.float16))}),
        rf"Wrong precision: {NORM} is torch\.float16, expected torch\.float32",
    ),
    "truncated": (
        written_otherwise({}, lambda file: file.write_bytes(file.read_bytes()[:-5])),
        r"out/model\.safetensors cannot be read",
    ),
    "config": (
        written_otherwise({}, lambda file: (file.parent / "config.json").write_text("{")),
        r"out/config\.json cannot be read",
    ),
    "tokenizer": (
        written_otherwise({}, lambda file: (file.parent / "vlm/tokenizer.json").unlink()),
        r"has no vlm/tokenizer\.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_save_that_does_not_read_back_fails_and_leaves_nothing(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, expected = DAMAGES[damage]
    monkeypatch.setattr(saving, "write_stream", write)
    with pytest.raises(CheckpointError, match=f"written for .*out does not read back.*{expected}"):
        VLA0Policy(make_config()).save_pretrained(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path)
    (tmp_path / "notes").write_text("mine")

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    with torch.no_grad():
        policy.get_parameter(NORM).mul_(2)
    monkeypatch.setattr(saving, "write_stream", DAMAGES["lost"][0])
    with pytest.raises(CheckpointError, match="does not read back"):
        policy.save_pretrained(tmp_path)
    assert content() == before
    monkeypatch.undo()
    policy.save_pretrained(tmp_path)
    assert content().keys() == before.keys()
    assert torch.equal(load_file(tmp_path / "model.safetensors")[NORM], policy.get_parameter(NORM).detach())


def test_reading_back_does_not_disturb_the_draws_of_training(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config())
    state = torch.get_rng_state()
    policy.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_gathered_weights_are_saved_without_asking_the_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = VLA0Policy(make_config())
    gathered = dict(policy.state_dict())

    def wait(*_: Any, **__: Any) -> None:
        raise AssertionError("one process waits for the others")

    monkeypatch.setattr(policy, "state_dict", wait)  # of sharded parameters: a collective
    policy.save_pretrained(tmp_path, state_dict=gathered)
    assert torch.equal(load_file(tmp_path / "model.safetensors")[HEAD], gathered[HEAD])


def test_weights_in_four_bits_are_not_saved_whole() -> None:
    policy = VLA0Policy(make_config())
    held = {**policy.state_dict(), NORM: torch.zeros(32, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=rf"{NORM} is held as torch\.uint8.*only the adapter is saved"):
        plan_tensors(policy, held, None)


def test_tied_weights_that_sharding_made_two_are_still_one() -> None:
    policy = VLA0Policy(make_config())
    policy.vlm.model.lm_head.weight = nn.Parameter(policy.get_parameter(EMBEDDING).detach().clone())
    assert left_out(policy) == {EMBEDDING: HEAD}
    planned = plan_tensors(policy, None, "bfloat16")
    assert {HEAD, EMBEDDING} & planned.keys() == {HEAD}
    assert planned[HEAD].read().dtype == torch.bfloat16


def test_untied_weights_are_two(tmp_path: Path) -> None:
    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path)
    described = tmp_path / "vlm/config.json"
    described.write_text(
        described.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    untied = VLA0Policy(make_config(), stored_vlm=tmp_path / "vlm")
    assert left_out(untied) == {}
    untied.save_pretrained(tmp_path / "untied")
    assert {HEAD, EMBEDDING} <= load_file(tmp_path / "untied/model.safetensors").keys()


# ------------------------------------------------------------------ every writer


def save(tmp_path: Path) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path / "made" / "out")


def merge(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    merge_adapter(
        save_adapter(VLA0Policy(make_config()), tmp_path / "adapter", "tiny"), tmp_path / "made" / "out"
    )


def import_official(tmp_path: Path) -> None:
    import_checkpoint(write_paper_checkpoint(tmp_path / "paper"), tmp_path / "made" / "out")


WRITERS: dict[str, tuple[Callable[[Path], None], Any]] = {
    "save": (save, saving),
    "merge": (merge, merging),
    "import": (import_official, official),
}


def left(tmp_path: Path) -> list[str]:
    return [str(path) for path in (tmp_path / "made").rglob("*") if path.is_file()]


def broken_stats(file: Path) -> dict[str, Tensor]:
    stats = load_file(file)
    stats["action.min"][0] = torch.nan
    return stats


@pytest.mark.parametrize("writer", ["merge", "import"])
def test_other_writers_check_weights_and_processors(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, module = WRITERS[writer]
    step = "policy_postprocessor_step_0.safetensors"
    for damage, expected in (
        (written_otherwise({HEAD: None}), f"Missing tensors: {HEAD}"),
        (
            written_otherwise({}, lambda file: (file.parent / "policy_preprocessor.json").write_text("{")),
            r"the processors do not load \(JSONDecodeError",
        ),
        (
            written_otherwise(
                {}, lambda file: save_file(broken_stats(file.parent / step), file.parent / step)
            ),
            r"StatsError: the action statistics are unusable in dimensions \[0\]",
        ),
        (
            written_otherwise({}, lambda file: (file.parent / step).write_bytes(b"")),
            r"the processors do not load \(SafetensorError",
        ),
    ):
        monkeypatch.setattr(module, "write_stream", damage)
        with pytest.raises(CheckpointError, match=f"written for .*out does not read back.*{expected}"):
            write(tmp_path)
        assert left(tmp_path) == []
        for folder in ("adapter", "paper", "made"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_too_small_is_named_before_the_work(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, module = WRITERS[writer]
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda place: SimpleNamespace(free=12_000))

    def begun(*_: Any) -> None:
        raise AssertionError("weights were written")

    monkeypatch.setattr(module, "write_stream", begun)
    if module is merging:
        monkeypatch.setattr(saving, "require_space", begun)  # the adapter is not the policy
    with pytest.raises(
        OutputError, match=r"made/out needs \d+\.\d [kM]B, and its disk has 12\.0 kB free\. Free some space"
    ):
        write(tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers says it
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_disk_that_gets_full_is_named_and_nothing_is_left(
    writer: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, _ = WRITERS[writer]

    def fill(vlm: VLM, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        raise error

    monkeypatch.setattr(VLM, "save_description", fill)
    with pytest.raises(
        OutputError,
        match=r"made/out could not be written \(.*No space left on device.*\); its disk has .*B free",
    ):
        write(tmp_path)
    assert left(tmp_path) == []
