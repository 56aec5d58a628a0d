"""Which primitive solves which task of LIBERO."""

from __future__ import annotations

from dataclasses import dataclass

from primitives import Expert, push_plate, turn_knob


@dataclass(frozen=True)
class Task:
    """A task of LIBERO and its scripted expert."""

    suite: str
    task_id: int
    expert: Expert


TASKS = {
    "turn_on_the_stove": Task("libero_goal", 7, turn_knob("flat_stove_1", "flat_stove_1_button")),
    "push_the_plate": Task("libero_goal", 5, push_plate("plate_1", "main_table_stove_front_region")),
}
