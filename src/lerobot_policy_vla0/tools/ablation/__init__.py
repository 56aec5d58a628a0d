"""Ablations: the same training and evaluation again and again, one choice changed at a time.

::

    plan      a YAML file ▸ trainings, evaluations, and which of them answer which question
    training  one lerobot-train run that is begun, gone on with, or skipped
    sweep     everything in the plan that is not finished yet
    report    what is finished ▸ a table per question
"""
