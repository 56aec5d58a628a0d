"""The scalars of a training step, which stay on the device until somebody looks at one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import torch
from torch import Tensor


class StepScalars(MutableMapping[str, float]):
    """Reads all values in one transfer when the first one is asked for.

    Reading waits for the device. Between the forward and the backward pass the device would have nothing to do after
    it; LeRobot looks at the scalars at the end of a step, when it has waited for the loss itself.

    Args:
        values: each ``()`` on one device, or numbers.

    >>> scalars = StepScalars({"loss": torch.tensor(0.5), "share": torch.tensor(2)})
    >>> list(scalars), dict(scalars)
    (['loss', 'share'], {'loss': 0.5, 'share': 2.0})
    """

    def __init__(self, values: Mapping[str, Tensor | float]) -> None:
        self._numbers = {name: v for name, v in values.items() if not isinstance(v, Tensor)}
        waiting = {name: v.detach().float() for name, v in values.items() if isinstance(v, Tensor)}
        self._names = list(values)
        self._waiting = list(waiting)
        self._packed = torch.stack(list(waiting.values())) if waiting else None

    def _read(self) -> dict[str, float]:
        if self._packed is not None:
            self._numbers |= dict(zip(self._waiting, self._packed.tolist(), strict=True))
            self._packed = None
        return self._numbers

    def __getitem__(self, name: str) -> float:
        return self._read()[name]

    def __setitem__(self, name: str, value: float) -> None:
        self._read()[name] = value
        if name not in self._names:
            self._names.append(name)

    def __delitem__(self, name: str) -> None:
        del self._read()[name]
        self._names.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"
