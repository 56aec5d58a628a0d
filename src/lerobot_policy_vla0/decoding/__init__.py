"""Greedy decoding under the grammar.

`reference` is the slow definition, every other decoder returns its tokens. `fast` settles what needs no pass of its
own, `speculative` drafts, `passes` runs the model.
"""
