"""Which primitive solves which task of LIBERO. Names of tasks, objects and regions are LIBERO's own.

python tasks.py NAME      prints the task's suite and its number there, for lerobot-eval
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from primitives import Expert, pick_and_place, push_plate, turn_knob
from simulation import task_number


@dataclass(frozen=True)
class Task:
    """A task's suite and its scripted expert."""

    suite: str
    expert: Expert


def bowl_to(target: str) -> Expert:
    """Pick the black bowl up by the left of its rim and put it down on `target`."""
    return pick_and_place(
        "akita_black_bowl_1", target, grasp=(0, 0.05, 0.042), place=(0, 0, 0), clearance=0.08
    )


def into_basket(name: str) -> Expert:
    """Pick an object up by its middle and let it down into the basket."""
    return pick_and_place(
        name, "basket_1_contain_region", grasp=(0, 0, 0.01), place=(0, 0, 0.03), clearance=0.15
    )


KNOB = turn_knob("flat_stove_1", "flat_stove_1_button")

TASKS = {
    # libero_spatial
    "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate": Task(
        "libero_spatial", bowl_to("plate_1")
    ),
    "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate": Task(
        "libero_spatial", bowl_to("plate_1")
    ),
    # libero_object
    "pick_up_the_alphabet_soup_and_place_it_in_the_basket": Task(
        "libero_object", into_basket("alphabet_soup_1")
    ),
    "pick_up_the_bbq_sauce_and_place_it_in_the_basket": Task("libero_object", into_basket("bbq_sauce_1")),
    # libero_goal
    "turn_on_the_stove": Task("libero_goal", KNOB),
    "push_the_plate_to_the_front_of_the_stove": Task(
        "libero_goal", push_plate("plate_1", "main_table_stove_front_region")
    ),
    "put_the_bowl_on_the_plate": Task("libero_goal", bowl_to("plate_1")),
    "put_the_bowl_on_the_stove": Task("libero_goal", bowl_to("flat_stove_1_cook_region")),
    "put_the_bowl_on_top_of_the_cabinet": Task("libero_goal", bowl_to("wooden_cabinet_1_top_side")),
    "put_the_cream_cheese_in_the_bowl": Task(
        "libero_goal",
        pick_and_place(
            "cream_cheese_1",
            "akita_black_bowl_1",
            grasp=(0, 0, 0),  # it is 2 cm high: higher up, the fingers slip off
            place=(0, 0, 0.03),  # lower than it can get: it has to touch the bowl
            clearance=0.10,
            slope=3.0,  # over the rim
            tolerance=(0.01, 0.01),
        ),
    ),
    # libero_90
    "KITCHEN_SCENE1_put_the_black_bowl_on_the_plate": Task("libero_90", bowl_to("plate_1")),
    "KITCHEN_SCENE3_turn_on_the_stove": Task("libero_90", KNOB),
}


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    if len(arguments) != 1 or arguments[0] not in TASKS:
        print(f"{__doc__}\nNames: {', '.join(TASKS)}", file=sys.stderr)
        return 2
    suite = TASKS[arguments[0]].suite
    print(suite, task_number(suite, arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
