"""Which primitive solves which task of LIBERO."""

from __future__ import annotations

from dataclasses import dataclass

from primitives import Expert, pick_and_place, push_plate, turn_knob


@dataclass(frozen=True)
class Task:
    """A task of LIBERO and its scripted expert."""

    suite: str
    task_id: int
    expert: Expert


def bowl_to(target, bowl="akita_black_bowl_1", side=1, place=(0,0,0.0), clearance=0.08):
    return pick_and_place(bowl, target, (0.0, side*0.05, 0.042), place, clearance)

def basket(name):
    return pick_and_place(name, "basket_1_contain_region", (0.0, 0.0, 0.01), (0.0, 0.0, 0.03), 0.15)

TASKS = {
    "turn_on_the_stove": Task("libero_goal", 7, turn_knob("flat_stove_1", "flat_stove_1_button")),
    "push_the_plate": Task("libero_goal", 5, push_plate("plate_1", "main_table_stove_front_region")),
    "bowl_plate": Task("libero_goal", 8, bowl_to("plate_1")),
    "bowl_stove": Task("libero_goal", 1, bowl_to("flat_stove_1_cook_region")),
    "bowl_cabinet": Task("libero_goal", 4, bowl_to("wooden_cabinet_1_top_side",clearance=0.08)),
    "cheese_bowl": Task("libero_goal", 6, pick_and_place("cream_cheese_1","akita_black_bowl_1",(0,0,0.01),(0,0,0.05),0.08)),
    "spatial_0": Task("libero_spatial", 0, bowl_to("plate_1")),
    "spatial_2": Task("libero_spatial", 2, bowl_to("plate_1")),
    **{f"object_{i}": Task("libero_object", i, basket(n+"_1")) for i,n in enumerate("alphabet_soup cream_cheese salad_dressing bbq_sauce ketchup tomato_sauce butter milk chocolate_pudding orange_juice".split())},
    "k1_plate": Task("libero_90", 9, bowl_to("plate_1")),
    "k3_stove": Task("libero_90", 20, turn_knob("flat_stove_1", "flat_stove_1_button")),
}
