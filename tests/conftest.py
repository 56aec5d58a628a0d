"""Shared fixtures: everything offline, on the CPU, with the tiny model."""

from __future__ import annotations

import os

# Before any import that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MUJOCO_GL", "egl")
# A tiny model is too small to share out: threads would only wait for each other, and more so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Plain C++ from torch.compile: to choose vector instructions, PyTorch builds and imports ten libraries (40 s).
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from helpers.gpu_files import GpuFilesOnly
from helpers.paths import REPO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Programs for processes of their own, whose import has effects, and helpers that need an extra.
collect_ignore = [
    "helpers/libero_worker.py",
    "helpers/libero_expert_worker.py",
    "helpers/libero_start.py",
    "helpers/lerobot_client.py",
    "helpers/served.py",
]

# The same examples on every run, and none of them too slow: how fast the machine is says nothing about the code.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")

# A shell lets what it starts in the background ignore Ctrl-C, and every process started here would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder for all processes of this run."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(autouse=True, scope="session")
def own_compiler_cache(shared_folder: Path) -> None:
    """Compile into a folder of this run: a run that was killed may have left half a file in the user's cache."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(shared_folder / "inductor")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Let every test call `lerobot-train` as a new process would: accelerate keeps the first precision it got."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def pytest_configure(config: pytest.Config) -> None:
    """Narrow `-m gpu`, in src as well, where a conftest's own hooks do not reach."""
    if config.option.markexpr == "gpu":
        config.pluginmanager.register(GpuFilesOnly())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the network or an accelerator, unless it is asked for or there; begin with what takes long."""
    import torch

    # Several processes take file after file in this order: the long ones first, so that all end at about the same time.
    long = {
        item.path for item in items if item.get_closest_marker("sim") or item.path.parent.name == "decoding"
    }
    items.sort(key=lambda item: item.path not in long)
    for item in items:
        if item.get_closest_marker("network") and "network" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="talks to the Hub; run with -m network"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real tokenizer and simulation assets, beside the checkout; skips without it."""
    folder = Path(os.environ.get("VLA0_SHARED", REPO.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}: it holds the real tokenizer and simulation assets")
    return folder


@pytest.fixture(scope="session")
def qwen_folder(shared_dir: Path) -> Path:
    """The real Qwen2.5-VL tokenizer, chat template and image settings (no weights)."""
    folder = shared_dir / "qwen2_5_vl_processor"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_folder: Path) -> PreTrainedTokenizerBase:
    """The real tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(qwen_folder)
    return tokenizer


@pytest.fixture(scope="session")
def speaking_backbone(shared_folder: Path) -> Path:
    """A small base model that answers a few questions, taught once for all processes; see `helpers.speaking`."""
    from filelock import FileLock
    from helpers.speaking import save_speaking_backbone

    folder = shared_folder / "speaking"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            save_speaking_backbone(folder.with_name("taught")).rename(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that writes the answers to one batch without a grammar."""
    from helpers.exports import save_trained

    return save_trained(tmp_path_factory.mktemp("trained") / "policy")


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    """Its export."""
    from lerobot_policy_vla0.tools.commands import main

    out = trained.with_name("export")
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out
