"""Reads the tensors of safetensors files one at a time, and writes such a file one tensor at a time.

At most one tensor is in memory, so a model larger than the machine's memory can be copied. No tensor is converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lerobot_policy_vla0.checkpoints.exported import is_robot_folder
from lerobot_policy_vla0.errors import CheckpointError

#: The types that can be stored, by safetensors' names.
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def storable(dtype: torch.dtype) -> bool:
    """Return whether a tensor of this type can be stored."""
    return dtype in _NAMES


@dataclass(frozen=True)
class TensorSource:
    """Shape and type of a tensor, and the function that reads it, which is called when the tensor is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """Size in the file, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def find_tensors(folder: Path) -> dict[str, Path]:
    """Return the safetensors file of each tensor of a policy.

    Raises:
        CheckpointError: as `find_shards`, or naming tensors that are not in the file that the index names.
    """
    found = {name: shard for shard in find_shards(folder) for name in _names_in(shard)}
    listed = _read_index(folder)
    misplaced = [name for name, shard in listed.items() if found.get(name) != folder / shard]
    if misplaced:
        raise CheckpointError(
            f"the shards of {folder} do not hold what {SAFETENSORS_INDEX_FILE} lists: {shown(misplaced)}. They belong "
            "to another checkpoint or are incomplete: download or copy them again."
        )
    return found


def find_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a policy or a Hugging Face model: one file, or the shards its index lists.

    Raises:
        CheckpointError: naming the files that are absent, or an index that cannot be read.
    """
    listed = _read_index(folder)
    if not listed:
        return [folder / SAFETENSORS_SINGLE_FILE]
    shards = sorted(set(listed.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of the {len(shards)} shards {SAFETENSORS_INDEX_FILE} lists: "
            f"{shown(absent)}. Download or copy them again."
        )
    return [folder / shard for shard in shards]


def _read_index(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor; empty if there is a single file, even beside an index."""
    index = folder / SAFETENSORS_INDEX_FILE
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        return {}
    if is_robot_folder(folder):
        raise CheckpointError(
            f"{folder} is the robot's part of an export: a policy without weights, which an inference engine has. Say "
            "where the engine answers, --policy.engine=http://HOST:PORT/v1, or make a policy with all weights from the "
            "whole export: vla0 import EXPORT --out DIR."
        )
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has neither {SAFETENSORS_SINGLE_FILE} nor {SAFETENSORS_INDEX_FILE}; it holds "
            f"{sorted(p.name for p in folder.iterdir())}. Point to a folder such as "
            ".../checkpoints/last/pretrained_model, or download the weights (*.safetensors); pickled weights (*.bin, "
            "*.pth) are not read."
        )
    try:
        listed: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index} is not a readable index of weights ({type(error).__name__}: {error}). Download it again."
        ) from error
    outside = {name for name in listed.values() if not isinstance(name, str) or Path(name).name != name}
    if outside:
        raise CheckpointError(
            f"{index} names {sorted(map(str, outside))}, which are not files beside it. Download the checkpoint again "
            "from a source you trust."
        )
    return listed


def open_shard(file: Path) -> Any:
    """Open a safetensors file.

    Raises:
        CheckpointError: if it is no safetensors file, or incomplete.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); it is truncated or damaged, or a Git LFS pointer. Download or copy it "
            "again."
        ) from error


def _names_in(file: Path) -> list[str]:
    with open_shard(file) as stored:
        return list(stored.keys())


def shown(names: Any, limit: int = 8) -> str:
    """Return sorted names for a message: the first ``limit`` of them and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) or "none") + more


class ShardReader:
    """Reads the tensors of several safetensors files one by one. It is a context manager.

    Args:
        shards: the files.

    Raises:
        CheckpointError: if a file is damaged, or a tensor is stored twice or has a type that is not supported.
    """

    def __init__(self, shards: list[Path]) -> None:
        self.tensors: dict[str, TensorSource] = {}
        self._files: dict[str, Any] = {}  # the open file of each tensor, for `rows`
        self._stack = ExitStack()
        try:
            for shard in shards:
                self._open(shard)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, shard: Path) -> None:
        file = self._stack.enter_context(open_shard(shard))
        # Whole tensors are read and not memory-mapped, because mapped pages count as this process's memory.
        stream = self._stack.enter_context(shard.open("rb"))
        size = int.from_bytes(stream.read(8), "little")
        begins = {
            name: 8 + size + item["data_offsets"][0]
            for name, item in json.loads(stream.read(size)).items()
            if name != "__metadata__"
        }
        for name in file.keys():  # noqa: SIM118 - not a dict
            described = file.get_slice(name)
            stored_as = str(described.get_dtype())
            if stored_as not in _TYPES:
                raise CheckpointError(
                    f"{shard} stores {name} as {stored_as}, expected one of {sorted(_TYPES)}. Quantised weights "
                    "cannot be imported: use the original ones."
                )
            if name in self.tensors:
                raise CheckpointError(
                    f"{name} is stored in {shard} and in another shard too. Remove the stale files."
                )

            shape, dtype = tuple(described.get_shape()), _TYPES[stored_as]

            def read(
                shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype, begin: int = begins[name]
            ) -> Tensor:
                tensor = torch.empty(shape, dtype=dtype)
                stream.seek(begin)
                if stream.readinto(_bytes(tensor)) != tensor.nbytes:
                    raise CheckpointError(f"{shard} became shorter while it was read. Start again.")
                return tensor

            self._files[name] = file
            self.tensors[name] = TensorSource(shape, dtype, read)

    def rows(self, name: str, step: int = 4096) -> Iterator[Tensor]:
        """Yield a tensor ``step`` rows at a time, without reading all of it."""
        described = self._files[name].get_slice(name)
        for start in range(0, self.tensors[name].shape[0], step):
            yield described[start : start + step]

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def write_stream(file: Path, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with one tensor in memory at a time; `safetensors.torch.save_file` needs all of them.

    Args:
        file: the file to create.
        tensors: the tensors by name.
        metadata: text for the header.

    Raises:
        CheckpointError: if a tensor that is read has another shape or type than announced.
    """
    # Wide types come first, so that every tensor is aligned to its type.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        source = tensors[name]
        header[name] = {
            "dtype": _NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [offset, offset + source.n_bytes],
        }
        offset += source.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in order:
            stream.write(_raw(name, tensors[name]))


def _raw(name: str, source: TensorSource) -> memoryview:
    tensor = source.read()
    if tuple(tensor.shape) != source.shape or tensor.dtype != source.dtype:
        raise CheckpointError(
            f"{name} was announced as {source.shape} {source.dtype} and read as {tuple(tensor.shape)} "
            f"{tensor.dtype}: the file changed while it was read. Start again."
        )
    return _bytes(tensor.contiguous())


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, without copying it."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
