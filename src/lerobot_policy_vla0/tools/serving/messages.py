"""Packs and unpacks messages with arrays in msgpack, as openpi's and vla-eval's clients write them, without pickle.

Both mark an array by a key in a mapping: openpi by ``b"__ndarray__"`` (bytes), vla-eval by ``"__ndarray__"`` (text)
and, for pictures, ``"__image__"``. `unpack` reads all of them, so it does not need to know who sent a message.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from lerobot_policy_vla0.errors import ServingError

#: Numbers only: bool, integers and floats. Objects would need pickle, which runs what it reads.
_KINDS = "biuf"
#: Pixels of the largest picture; a compressed one can be small and unpack to gigabytes.
_MOST_PIXELS = 4096 * 4096


def unpack(data: bytes) -> dict[str, Any]:
    """Return a client's message with its arrays.

    Raises:
        ServingError: if the bytes are no such message.
    """
    try:
        message = msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=_read)
    except ServingError:
        raise
    except Exception as error:  # msgpack, NumPy and Pillow raise many kinds for damaged bytes
        raise ServingError(
            f"{len(data)} bytes cannot be read as msgpack with arrays ({type(error).__name__}: {error})."
        ) from None
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise ServingError(f"the message is {type(message).__name__}, expected a mapping with names as keys.")
    return message


def pack_for_openpi(message: Mapping[str, Any]) -> bytes:
    """Return a message with arrays as openpi's client reads it."""
    return _pack(message, str.encode)


def pack_for_vla_eval(message: Mapping[str, Any]) -> bytes:
    """Return a message with arrays as vla-eval's client reads it."""
    return _pack(message, str)


def _pack(message: Mapping[str, Any], key: Callable[[str], Any]) -> bytes:
    """Pack a message whose arrays become mappings; ``key`` writes the names in them as the client does."""

    def write(value: Any) -> Any:
        array = np.asarray(value)
        fields = {
            "__ndarray__": True,
            "data": array.tobytes(),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
        return {key(name): field for name, field in fields.items()}

    packed: bytes = msgpack.packb(message, default=write)
    return packed


def _read(found: dict[Any, Any]) -> Any:
    """Return what a mapping stands for: an array, a number, a picture, or itself."""
    if found.get(b"__npgeneric__"):
        return _dtype(found[b"dtype"]).type(found[b"data"])
    if found.get(b"__ndarray__"):
        return _array(found[b"data"], found[b"dtype"], found[b"shape"])
    if found.get("__ndarray__"):
        return _array(found["data"], found["dtype"], found["shape"])
    if found.get("__image__"):
        return _picture(found)
    return found


def _dtype(name: Any) -> np.dtype[Any]:
    kind = np.dtype(name if isinstance(name, str) else name.decode())
    if kind.kind not in _KINDS:
        raise ServingError(f"an array of {kind} was sent, expected booleans, integers or floats.")
    return kind


def _array(data: bytes, dtype: Any, shape: Any) -> np.ndarray[Any, Any]:
    kind, sides = _dtype(dtype), tuple(int(side) for side in shape)
    if min(sides, default=0) < 0 or math.prod(sides) * kind.itemsize != len(data):
        raise ServingError(f"an array of {kind} {sides} was sent with {len(data)} bytes.")
    return np.frombuffer(data, kind).reshape(sides)


def _picture(found: dict[str, Any]) -> np.ndarray[Any, Any]:
    if found["format"] == "raw":
        return _array(found["data"], found["dtype"], found["shape"])
    picture = Image.open(io.BytesIO(found["data"]), formats=("PNG", "JPEG"))
    if picture.width * picture.height > _MOST_PIXELS:
        raise ServingError(
            f"a picture of {picture.width} x {picture.height} pixels was sent, 4096 x 4096 at most."
        )
    return np.asarray(picture)
