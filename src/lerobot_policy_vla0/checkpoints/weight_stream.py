"""Reads the tensors of safetensors files one at a time, and writes such a file one tensor at a time.

At no moment is more than one tensor in memory, so a model of any size is copied on a machine of any size.
Nothing is converted: bfloat16 stays bfloat16. Knows nothing about models or policies.
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

from lerobot_policy_vla0.errors import CheckpointError

#: Types of weights and of counts, by safetensors' names.
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def storable(dtype: torch.dtype) -> bool:
    """Return whether a tensor of this type can be written, and read again."""
    return dtype in _NAMES


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor comes from and what it is.

    Attributes:
        shape: its shape.
        dtype: its type.
        read: returns it; called once, when its turn to be written has come.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def find_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face model folder, from its index if it has one.

    Raises:
        CheckpointError: naming the files that are absent, or an index that cannot be read.
    """
    single, index = folder / SAFETENSORS_SINGLE_FILE, folder / SAFETENSORS_INDEX_FILE
    if single.is_file():  # before the index, as transformers has it
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has neither {SAFETENSORS_SINGLE_FILE} nor {SAFETENSORS_INDEX_FILE}; it holds "
            f"{sorted(p.name for p in folder.iterdir())}. Download the weights (*.safetensors); pickled weights "
            "(*.bin, *.pth) are not read."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a readable index of weights ({type(error).__name__}: {error}). Download it again."
        ) from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise CheckpointError(
            f"{index} names {outside}, which are not files beside it. Download the checkpoint again from a "
            "source you trust."
        )
    shards = [folder / name for name in names]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {absent}, which its {SAFETENSORS_INDEX_FILE} lists. Download the missing files."
        )
    return shards


class ShardReader:
    """The tensors of several safetensors files, read one by one. A context manager.

    Args:
        shards: the files.

    Raises:
        CheckpointError: if a file is truncated or damaged, a tensor is stored twice, or has a type that is no
            weight's.
    """

    def __init__(self, shards: list[Path]) -> None:
        self.tensors: dict[str, TensorSource] = {}
        self._files: dict[str, Any] = {}  # by tensor, for parts of it
        self._stack = ExitStack()
        try:
            for shard in shards:
                self._open(shard)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, shard: Path) -> None:
        try:
            file: Any = self._stack.enter_context(safe_open(shard, framework="pt"))
            # Whole tensors are read, not mapped: what is mapped counts as this process's memory until another needs it.
            stream = self._stack.enter_context(shard.open("rb"))
            size = int.from_bytes(stream.read(8), "little")
            begins = {
                name: 8 + size + item["data_offsets"][0]
                for name, item in json.loads(stream.read(size)).items()
                if name != "__metadata__"
            }
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{shard} cannot be read ({error}); it is truncated or damaged, or a Git LFS pointer. Download or "
                "copy it again."
            ) from error
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
    """Write a safetensors file, asking for each tensor when its turn has come and letting go of it after.

    (`safetensors.torch.save_file` wants all of them at once.)

    Args:
        file: is created.
        tensors: by the name they get.
        metadata: text for the header.

    Raises:
        CheckpointError: if a source gives another shape or type than it announced.
    """
    # Wide types first keeps every tensor aligned to its type.
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
    """Return the bytes of a tensor without copying them."""
    tensor = source.read()
    if tuple(tensor.shape) != source.shape or tensor.dtype != source.dtype:
        raise CheckpointError(
            f"{name} was announced as {source.shape} {source.dtype} and read as {tuple(tensor.shape)} "
            f"{tensor.dtype}: the file changed while it was read. Start again."
        )
    return _bytes(tensor.contiguous())


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
