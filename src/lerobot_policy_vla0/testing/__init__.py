"""Shipped helpers for running everything offline on a CPU: a tiny random VLM and its tokenizer."""

from __future__ import annotations

from lerobot_policy_vla0.testing.tiny_vlm import TINY, build_tiny_tokenizer, tiny_vlm_config

__all__ = ["TINY", "build_tiny_tokenizer", "tiny_vlm_config"]
