"""The package's errors: one class for each thing a user can get wrong.

Every message states what was given, what was expected and the fix. All of them are ``ValueError``s, so code that
already guards LeRobot calls keeps working.
"""

from __future__ import annotations


class Vla0Error(ValueError):
    """Base class of every error this package raises on purpose."""


class ConfigError(Vla0Error):
    """An option is out of range, contradicts another option, or would have no effect."""


class StatsError(Vla0Error):
    """Statistics needed to normalise actions or state are missing, unusable, or of other data."""


class TokenizerError(Vla0Error):
    """The tokenizer does not write every digit and the space as one token."""


class PromptError(Vla0Error):
    """The task text is missing or of the wrong type, or the prompt is too long."""


class QuestionError(Vla0Error):
    """A question and an action were mixed up, or the backbone cannot answer questions, or it answered nothing."""


class ImageError(Vla0Error):
    """An image tensor has the wrong shape, type or value range, or contains NaN/Inf."""


class CameraError(ImageError):
    """The cameras of a batch are not the cameras the policy was built for."""


class StateError(Vla0Error):
    """The robot's state is missing, has the wrong shape, contains NaN/Inf, or is of another robot."""


class ActionError(Vla0Error):
    """An action tensor has the wrong shape, or contains NaN/Inf."""


class AnswerError(Vla0Error):
    """Token ids are not exactly ``chunk_size * action_dim`` integers in ``[0, n_bins]``."""


class DecodeError(Vla0Error):
    """The model returned NaN/Inf logits, so no action can be derived from them."""


class EngineError(Vla0Error):
    """The inference server that a policy asks is not reachable, or answers something else than an action."""


class DatasetError(Vla0Error):
    """A dataset cannot be read, or lacks the episodes that are asked for."""


class CheckpointError(Vla0Error):
    """A checkpoint misses files or tensors, or contradicts the configuration it is loaded with."""


class ExportError(Vla0Error):
    """A policy or an adapter has parts that inference engines do not take."""


class OutputError(Vla0Error):
    """A file or folder to be written exists already, or cannot be written."""


class EvaluationError(Vla0Error):
    """Evaluation results cannot be read, contradict each other or the arguments, or are incomplete."""


class LiberoError(Vla0Error):
    """LIBERO is not installed, or its configuration or assets are missing, damaged or in the way."""


class SharedPolicyError(Vla0Error):
    """One policy object is used by several threads; its queue and ensembler belong to one rollout."""


class ServingError(Vla0Error):
    """A client of ``vla0 serve`` sent something unusable, or the server cannot answer it."""
