"""A question to a pipeline with its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flmm_core import config
from flmm_core.errors import CommandError
from flmm_core.requests.callbacks import Callbacks

if TYPE_CHECKING:  # a node reads commands before transformers is imported, which takes seconds
    from flmm_core.lmm.tokens import Exchange


@dataclass(frozen=True)
class ChatCommand:
    """What :func:`~flmm_core.chat.batching.chat_batch` answers."""

    image: Any
    """The pipeline's handle of an image."""
    text: str
    """The user's words."""
    history: Sequence[Exchange] = ()
    """Questions about the image and their answers before this one, the oldest first; see
    :class:`~flmm_core.chat.conversation.Conversation`."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; None for the configured length."""
    max_phrases: int | None = None
    """Most phrases that get a mask; None for the configured number."""
    masks: bool = True
    """Whether to ground the answer; without, it has no phrases and costs only its words."""
    callbacks: Callbacks | None = None
    """Follow the command, and may cancel it."""

    def __post_init__(self) -> None:
        check_limits(max_new_tokens=self.max_new_tokens, max_phrases=self.max_phrases)


def check_limits(**limits: int | None) -> None:
    """Refuse limits of one command that the configuration would not allow; None stands for its own.

    Raises:
        CommandError: names the limit.
    """
    for name, value in limits.items():
        try:
            if value is not None:
                config.check(name, value)
        except ValueError as error:
            raise CommandError(str(error)) from error
