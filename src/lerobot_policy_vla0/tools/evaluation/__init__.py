"""Runs an evaluation in parts that can be killed and resumed, reads the results, and reports what they show.

::

    plan     an evaluation ▸ shards                      (arguments only)
    shards   shards ▸ lerobot-eval processes             (folder: what lies on disk; heartbeat: does one hang)
    watched  the worker's side: environments ▸ notes     (steps: every step, as a table)
    perturbation  what the policy sees ▸ the same, changed
    tracking  what has been done so far ▸ wandb, trackio
    runs     folders ▸ episodes with policy, task, seed  (eval_info: one lerobot-eval file; queries: the policy's)
    compare  episodes ▸ rates, paired comparisons        (statistics: the formulas)
    report   all of it ▸ terminal, Markdown, JSON, HTML  (plots: the pictures)
"""
