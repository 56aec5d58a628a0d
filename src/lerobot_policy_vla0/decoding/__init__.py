"""Greedy decoding under the grammar.

`reference` defines the answer, and every other decoder returns its tokens. `fast` decodes with few passes,
`speculative` makes drafts for it, `passes` runs the model.
"""
