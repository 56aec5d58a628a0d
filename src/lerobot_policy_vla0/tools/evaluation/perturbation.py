"""Changes what the policy sees in an evaluation: pictures, instruction, and for LIBERO the place of the camera.

Everything drawn follows from the seed of the episode (and the step, for noise), so an evaluation that is resumed, or
divided otherwise, plays the same. States, actions, rewards and the simulation itself are never touched.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.paraphrases import paraphrase

#: What ``--perturb`` takes, for messages and documents.
ALLOWED = (
    "shift=1px to 64px (pictures are moved), brightness=0.01 to 0.9 (brighter or darker by this fraction), "
    "noise=0.1 to 64 (standard deviation in grey levels, of 255), instruction=paraphrase or instruction=@FILE.json, "
    "camera=0.1cm to 20cm (or mm; LIBERO only)"
)
_CAMERA_ENVIRONMENTS = ("libero", "libero_plus")
_SHIFT, _BRIGHTNESS, _NOISE, _CAMERA = range(4)  # so that no draw depends on which others are made


@dataclass(frozen=True)
class Perturbation:
    """What is changed, and by how much. Zero and empty change nothing."""

    shift: int = 0  # pixels
    brightness: float = 0.0  # fraction
    noise: float = 0.0  # standard deviation, grey levels
    instruction: str = ""  # paraphrase, or @ and the name of a file
    camera: float = 0.0  # metres
    paraphrases: Mapping[str, str] | None = None  # the content of that file

    @property
    def label(self) -> str:
        """The setting as ``--perturb`` takes it, always written in the same way."""
        parts = {
            "shift": f"{self.shift}px" * bool(self.shift),
            "brightness": f"{self.brightness:g}" * bool(self.brightness),
            "noise": f"{self.noise:g}" * bool(self.noise),
            "instruction": self.instruction,
            "camera": f"{100 * self.camera:g}cm" * bool(self.camera),
        }
        return ",".join(f"{key}={value}" for key, value in parts.items() if value)

    def check_environment(self, kind: str) -> None:
        """Raise EvaluationError if ``--env.type=kind`` cannot be perturbed in this way."""
        if self.camera and kind not in _CAMERA_ENVIRONMENTS:
            raise EvaluationError(
                f"--perturb camera={100 * self.camera:g}cm moves the camera in the simulator, which is possible in "
                f"{' and '.join(_CAMERA_ENVIRONMENTS)} only, not in --env.type={kind}: use shift=...px instead"
            )

    def observation(self, observation: Any, seeds: Sequence[int | None], step: int) -> Any:
        """Return a vector environment's observation with perturbed pictures; the given one stays as it is.

        Args:
            observation: as LeRobot's environments return it: under ``pixels`` uint8 ``(B, H, W, C)``, or a dictionary
                of such by camera.
            seeds: of the ``B`` episodes.
            step: steps since their reset.

        Raises:
            EvaluationError: there are no such pictures, they are smaller than the shift, or a seed is not known.
        """
        if not (self.shift or self.brightness or self.noise):
            return observation
        pixels = observation.get("pixels") if isinstance(observation, Mapping) else None
        cameras: Mapping[str, Any] = pixels if isinstance(pixels, Mapping) else {"": pixels}
        result = {}
        for camera, pictures in cameras.items():
            if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or pictures.ndim != 4:
                raise EvaluationError(
                    f"--perturb {self.label}: the environment returns no uint8 pictures (B, H, W, C) as 'pixels'"
                )
            rows = zip(pictures, seeds, strict=True)
            result[camera] = np.stack([self._picture(one, seed, step, camera) for one, seed in rows])
        return {**observation, "pixels": result if isinstance(pixels, Mapping) else result[""]}

    def _picture(
        self, picture: NDArray[np.uint8], seed: int | None, step: int, camera: str
    ) -> NDArray[np.uint8]:
        """Perturb one picture ``(H, W, C)``: move it, then change its light, then add noise."""
        name = zlib.crc32(camera.encode())
        if self.shift:
            picture = _moved(picture, self.shift, int(_random(seed, _SHIFT, name).integers(4)), self.label)
        values = picture.astype(np.float64)
        if self.brightness:  # the light of a scene is the same for all its cameras
            values *= 1 + self.brightness * (1 if _random(seed, _BRIGHTNESS).integers(2) else -1)
        if self.noise:
            values += _random(seed, _NOISE, name, step).normal(0, self.noise, picture.shape)
        levels: NDArray[np.uint8] = np.rint(values.clip(0, 255)).astype(np.uint8)
        return levels

    def task(self, instruction: str) -> str:
        """Return the instruction to give to the policy.

        Raises:
            EvaluationError: there is no paraphrase of it; the original is never given instead.
        """
        if not self.instruction:
            return instruction
        fix = f'a file of {{"{instruction}": "..."}} as instruction=@FILE.json'
        if self.paraphrases is not None:
            if instruction not in self.paraphrases:
                raise EvaluationError(
                    f"--perturb instruction={self.instruction}: the file has no paraphrase of {instruction!r}: add it"
                )
            return self.paraphrases[instruction]
        said = paraphrase(instruction)
        if said is None:
            raise EvaluationError(
                f"--perturb instruction=paraphrase: no rule paraphrases {instruction!r}: give {fix}"
            )
        return said


def camera_direction(seed: int) -> NDArray[np.float64]:
    """Return the direction ``(3,)``, of length 1, in which the camera is moved in the episode with this seed."""
    drawn = _random(seed, _CAMERA).normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _random(seed: int | None, *what: int) -> np.random.Generator:
    if seed is None:
        raise EvaluationError(
            "--perturb: an episode has no seed, from which everything that is drawn follows: give --seed"
        )
    return np.random.default_rng([seed, *what])


def _moved(picture: NDArray[np.uint8], pixels: int, direction: int, label: str) -> NDArray[np.uint8]:
    """Move a picture right, left, down or up; the edge it leaves is repeated."""
    height, width = picture.shape[:2]
    if pixels >= min(height, width):
        raise EvaluationError(
            f"--perturb {label}: the pictures have {width} x {height} pixels: shift them by less"
        )
    across, down = [(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)][direction]
    rows = (np.arange(height) - down).clip(0, height - 1)
    columns = (np.arange(width) - across).clip(0, width - 1)
    moved: NDArray[np.uint8] = picture[rows[:, None], columns]
    return moved


# ---------------------------------------------------------------------- reading --perturb


def parse_perturbation(text: str) -> Perturbation:
    """Return the setting that ``--perturb`` gives; the file that it names is read.

    Raises:
        EvaluationError: a key is unknown, missing or given twice, or a value has another unit or range; names all that
            are allowed.

    >>> parse_perturbation("noise=4,shift=8px,camera=10mm").label
    'shift=8px,noise=4,camera=1cm'
    """
    readers: dict[str, Callable[[str], Any]] = {
        "shift": lambda value: _number(value, r"(\d+)px", 1, 64, int),
        "brightness": lambda value: _number(value, r"([\d.]+)", 0.01, 0.9),
        "noise": lambda value: _number(value, r"([\d.]+)", 0.1, 64),
        "instruction": lambda value: value if value == "paraphrase" else None,
        "camera": _metres,
    }
    given: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in readers:
            raise EvaluationError(f"--perturb {text}: {item.strip()!r} is none of {ALLOWED}")
        if key in given:
            raise EvaluationError(f"--perturb {text}: {key} is given twice")
        if key == "instruction" and value.startswith("@"):
            path = Path(value[1:])
            given |= {key: f"@{path.name}", "paraphrases": read_paraphrases(path)}
            continue
        given[key] = readers[key](value)
        if given[key] is None:
            raise EvaluationError(f"--perturb {text}: {item.strip()!r} has to be one of {ALLOWED}")
    return Perturbation(**given)


def _number(
    value: str, pattern: str, low: float, high: float, kind: Callable[[str], float] = float
) -> float | None:
    """Return the number in a value, or None if it has another form or is out of range."""
    found = re.fullmatch(pattern, value)
    try:
        number = kind(found[1]) if found else None
    except ValueError:  # 1.2.3
        return None
    return number if number is not None and low <= number <= high else None


def _metres(value: str) -> float | None:
    for unit, per_metre in (("mm", 1000), ("cm", 100)):
        number = _number(value, rf"([\d.]+){unit}", 0.001 * per_metre, 0.2 * per_metre)
        if number is not None:
            return number / per_metre
    return None


def read_paraphrases(path: Path) -> dict[str, str]:
    """Return the content of a file of paraphrases: a JSON object from each instruction to what is said instead.

    Raises:
        EvaluationError: the file is unreadable or something else, or says an instruction itself.
    """
    expected = 'a JSON object of {"instruction": "paraphrase"}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"--perturb instruction=@{path} cannot be read as {expected}: {error}"
        ) from None
    if not isinstance(content, dict) or not content:
        raise EvaluationError(f"--perturb instruction=@{path} is not {expected}")
    for instruction, said in content.items():
        if not isinstance(said, str) or not said.strip() or said == instruction:
            raise EvaluationError(
                f"--perturb instruction=@{path}: {instruction!r} is to become {said!r}, which is no paraphrase"
            )
    return content
