"""Ablations: the same training and evaluation several times, with one choice changed each time.

::

    plan      a YAML file ▸ trainings, evaluations, and the tables that compare them
    training  one lerobot-train run: begun, continued, or skipped if it is finished
    sweep     everything in the plan that is not finished yet
    report    what is finished ▸ a table per factor
"""
