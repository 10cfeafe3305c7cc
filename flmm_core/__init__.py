"""F-LMM in PyTorch and transformers: answers of a frozen large multimodal model, grounded in images. Imports no ROS.

What users of the library import stands here, loaded lazily: ``from flmm_core import GroundingPipeline, locate``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flmm_core.chat.batching import chat_batch
    from flmm_core.chat.conversation import Conversation
    from flmm_core.config import GroundingConfig
    from flmm_core.drawing.overlay import draw_overlay
    from flmm_core.images.files import read_image
    from flmm_core.pipeline import GroundingPipeline
    from flmm_core.requests.callbacks import Callbacks
    from flmm_core.spatial.grasp import top_grasp
    from flmm_core.spatial.location import locate
    from flmm_core.types import GroundedAnswer, GroundedPhrase

__all__ = [
    "Callbacks",
    "Conversation",
    "GroundedAnswer",
    "GroundedPhrase",
    "GroundingConfig",
    "GroundingPipeline",
    "chat_batch",
    "draw_overlay",
    "locate",
    "read_image",
    "top_grasp",
]

_MODULES = {
    "Callbacks": "requests.callbacks",
    "Conversation": "chat.conversation",
    "GroundedAnswer": "types",
    "GroundedPhrase": "types",
    "GroundingConfig": "config",
    "GroundingPipeline": "pipeline",
    "chat_batch": "chat.batching",
    "draw_overlay": "drawing.overlay",
    "locate": "spatial.location",
    "read_image": "images.files",
    "top_grasp": "spatial.grasp",
}


def __dir__() -> list[str]:
    """The public names."""
    return __all__


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
