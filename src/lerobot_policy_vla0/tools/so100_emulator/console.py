"""Commands in words: one line of text switches a fault of an emulator on or off, or moves things."""

from __future__ import annotations

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
HELP = (
    f"Faults: {'; '.join(WORDS)}. The ball: ball X Y (metres ahead, metres to the left). "
    "An arm with physics begins again: reset SEED"
)


def obey(emulator: SO100Emulator, line: str) -> None:
    """Do what a line says. An empty line does nothing.

    Raises:
        ConfigError: if the words, an arm or a number make no sense. The message lists those that do.
    """
    if not line.strip():
        return
    try:
        _carry_out(emulator, *line.split())
    except (KeyError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        arms = ", ".join(emulator.arms)
        raise ConfigError(f"cannot do {line.strip()!r}. {HELP}. Arms: {arms}") from error


def _carry_out(emulator: SO100Emulator, *words: str) -> None:
    arms = emulator.arms
    match words:
        case "ball", x, y:
            emulator.place_ball(float(x), float(y))
        case (("stall" | "resume") as verb,):
            if not emulator.cameras:
                raise ConfigError(f"cannot do {verb!r}: there is no camera")
            for camera in emulator.cameras.values():
                (camera.stall if verb == "stall" else camera.resume)()
        case "reset", seed:
            if emulator.body is None:
                raise ConfigError("cannot do 'reset': only an arm with physics (--body mujoco) begins again")
            emulator.body.reset(int(seed))
        case "silence", arm, servo:
            arms[arm].faults.silence(int(servo))
        case "error", arm, servo, bits:
            arms[arm].faults.set_error(int(servo), int(bits))
        case "restore", arm, servo:
            arms[arm].faults.restore(int(servo))
        case "corrupt", arm, answers:
            arms[arm].faults.corrupt(int(answers))
        case "delay", arm, seconds:
            arms[arm].faults.delay(float(seconds))
        case "unplug", arm:
            arms[arm].port.unplug()
        case "replug", arm:
            arms[arm].port.replug()
        case _:
            raise ValueError(words[0])
