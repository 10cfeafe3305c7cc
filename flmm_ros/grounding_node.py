"""Entry point of the grounding node: installs signal handlers before the imports, which take seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flmm_ros.middleware import make_room_for_images
from flmm_ros.signals import leave_on_signals

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig
    from flmm_core.serving.interface import Pipeline


def main(args: Sequence[str] | None = None, *, load: Callable[[GroundingConfig], Pipeline] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        args: command line; None for that of the process.
        load: builds the pipeline; None for that of the parameters.

    Returns:
        0; 1 if the model could not be loaded; 2 for a wrong parameter.
    """
    leave_on_signals()
    make_room_for_images()
    from flmm_ros.grounding import GroundingNode, load_pipeline
    from flmm_ros.spinning import run_node

    return run_node(lambda: GroundingNode(load=load or load_pipeline), args)


if __name__ == "__main__":
    sys.exit(main())
