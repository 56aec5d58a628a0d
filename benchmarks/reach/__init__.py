"""Reaching for a ball with an emulated SO-100: the task, its demonstrations, and episodes of it."""
