"""A question to a pipeline, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flmm_core.lmm.tokens import Exchange
from flmm_core.requests.callbacks import Callbacks


@dataclass(frozen=True)
class ChatCommand:
    """What :meth:`~flmm_core.pipeline.GroundingPipeline.chat_batch` answers."""

    image: Any
    """The pipeline's handle of an image."""
    text: str
    """The user's words."""
    history: Sequence[Exchange] = ()
    """Questions about the image and their answers before this one, the oldest first; see
    :class:`~flmm_core.chat.conversation.Conversation`."""
    max_new_tokens: int | None = None
    """Longest answer; None for the configured one."""
    max_phrases: int | None = None
    """Most phrases that get a mask; None for the configured number."""
    masks: bool = True
    """Whether to ground; without, the answer has no phrases and costs no more than the words."""
    callbacks: Callbacks | None = None
    """Follows the command, and may cancel it."""
