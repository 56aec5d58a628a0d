"""The licences of the backbones' weights, which policies trained from them inherit."""

from __future__ import annotations

from dataclasses import dataclass

#: The Hub's id for weights whose licence is not known here.
UNKNOWN_LICENSE = "unknown"


@dataclass(frozen=True)
class License:
    """A licence as in the Hub's metadata: its id, or ``other`` with a name and the repo that has the text."""

    id: str
    name: str | None = None
    repo: str | None = None

    @property
    def link(self) -> str | None:
        """URL of the licence's text."""
        return f"https://huggingface.co/{self.repo}/blob/main/LICENSE" if self.repo else None


def backbone_license(vlm_model_name: str) -> License | None:
    """Return the licence of a backbone's weights, which policies trained from it inherit; None if unknown.

    >>> backbone_license("Qwen/Qwen2.5-VL-3B-Instruct").name
    'qwen-research'
    >>> backbone_license("Qwen/Qwen2.5-VL-7B-Instruct").id
    'apache-2.0'
    """
    owner, _, model = vlm_model_name.partition("/")
    if owner != "Qwen":
        return None
    for family, size, found in (
        ("Qwen2.5-VL", "3B", License("other", "qwen-research", vlm_model_name)),
        ("Qwen2.5-VL", "72B", License("other", "qwen", vlm_model_name)),
        ("Qwen2.5-VL", "7B", License("apache-2.0")),
        ("Qwen2.5-VL", "32B", License("apache-2.0")),
        ("Qwen2-VL", "2B", License("apache-2.0")),
        ("Qwen2-VL", "7B", License("apache-2.0")),
        ("Qwen2-VL", "72B", License("other", "tongyi-qianwen", vlm_model_name)),
    ):
        if model == f"{family}-{size}" or model.startswith(f"{family}-{size}-"):
            return found
    return None
