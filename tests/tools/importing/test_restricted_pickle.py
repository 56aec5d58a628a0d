"""Pickled statistics: arrays are read, everything else is refused unexecuted."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.official_checkpoint import (
    paper_stats,
    refusal,
)

from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.tools.importing.restricted_pickle import load_array_pickle


class Evil:
    """Makes a file when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "executed"
    content = {"out_ori_act": {"min": np.zeros(7), "max": Evil(trace)}}
    (broken / "dataset_stats.pkl").write_bytes(pickle.dumps(content, protocol=4))
    message = refusal(capsys, broken, tmp_path)
    assert "refers to 'posix.system'" in message and "it was not run" in message
    assert not trace.exists()
    pickle.loads((broken / "dataset_stats.pkl").read_bytes())  # the file does what it is accused of
    assert trace.exists()


@pytest.mark.parametrize(
    "names", [b"cnumpy\nload\n.", b"cbuiltins\neval\n.", b"cnumpy.core.multiarray\nscalar\n."]
)
def test_no_other_name_is_looked_up(names: bytes, tmp_path: Path) -> None:
    file = tmp_path / "stats.pkl"
    file.write_bytes(names)
    found = names[1:-2].decode().replace("\n", ".")
    with pytest.raises(CheckpointError, match=f"refers to '{found}'"):
        load_array_pickle(file)


def test_arrays_of_either_numpy_are_read(tmp_path: Path) -> None:
    array = np.array([1.5, -2.0], np.float32)
    file = tmp_path / "stats.pkl"
    for raw in (
        paper_stats([1.5, -2.0], [0.0, 0.0]),
        pickle.dumps({"out_ori_act": {"min": array}}, protocol=4),
    ):
        file.write_bytes(raw)
        read = load_array_pickle(file)["out_ori_act"]["min"]
        assert read.dtype == np.float32
        assert read.tolist() == [1.5, -2.0]
