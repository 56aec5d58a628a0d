"""Evaluation people can trust: run it in shards that survive, read what it left, say what it shows.

::

    plan     an evaluation ▸ shards                      (arguments only)
    shards   shards ▸ lerobot-eval processes             (worker: one of them; folder: what lies on disk)
    runs     folders ▸ episodes with policy, task, seed  (eval_info: one lerobot-eval file; queries: the policy's)
    compare  episodes ▸ rates, paired comparisons        (statistics: the formulas)
    report   all of it ▸ terminal, Markdown, JSON, HTML  (report_text: words; plots, report_html: looks)
"""
