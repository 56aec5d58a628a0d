"""Commands in words: one line of text switches a fault of an emulator on or off, or moves the ball."""

from __future__ import annotations

from collections.abc import Callable

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.emulator import SO100Emulator

#: One line for each fault.
WORDS = (
    "silence ARM SERVO",
    "error ARM SERVO BITS",
    "restore ARM SERVO",
    "corrupt ARM ANSWERS",
    "delay ARM SECONDS",
    "unplug ARM",
    "replug ARM",
    "stall",
    "resume",
)
HELP = f"Faults: {'; '.join(WORDS)}. The ball: ball X Y (metres ahead, metres to the left)"


def obey(emulator: SO100Emulator, line: str) -> None:
    """Do what a line says. An empty line does nothing.

    Raises:
        ConfigError: if the words, an arm or a number make no sense. The message lists those that do.
    """
    words = line.split()
    if not words:
        return
    try:
        _find(emulator, words)()
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, ConfigError):
            raise
        arms = ", ".join(emulator.arms)
        raise ConfigError(f"cannot do {line.strip()!r}. {HELP}. Arms: {arms}") from error


def _find(emulator: SO100Emulator, words: list[str]) -> Callable[[], None]:
    verb, *rest = words
    camera = emulator.camera
    if verb == "ball":
        x, y = (float(number) for number in rest)
        return lambda: emulator.place_ball(x, y)
    if verb in ("stall", "resume") and not rest:
        if camera is None:
            raise ConfigError(f"cannot do {verb!r}: there is no camera")
        return camera.stall if verb == "stall" else camera.resume
    arm = emulator.arms[rest[0]]
    match verb, rest[1:]:
        case "silence", [servo]:
            return lambda: arm.faults.silence(int(servo))
        case "error", [servo, bits]:
            return lambda: arm.faults.set_error(int(servo), int(bits))
        case "restore", [servo]:
            return lambda: arm.faults.restore(int(servo))
        case "corrupt", [answers]:
            return lambda: arm.faults.corrupt(int(answers))
        case "delay", [seconds]:
            return lambda: arm.faults.delay(float(seconds))
        case "unplug", []:
            return arm.port.unplug
        case "replug", []:
            return arm.port.replug
    raise ValueError(verb)
