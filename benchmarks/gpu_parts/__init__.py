"""The stages of `gpu.py`. Each runs in a process of its own; nothing heavy is imported before it does."""
