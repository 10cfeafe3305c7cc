"""Entry point of the simulated camera: installs signal handlers before the imports, which take seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flmm_ros.middleware import make_room_for_images
from flmm_ros.signals import leave_on_signals


def main(args: Sequence[str] | None = None) -> int:
    """Run the camera until SIGINT or SIGTERM.

    Returns:
        0; 1 if nothing can be rendered on this machine; 2 for a wrong parameter.
    """
    leave_on_signals()
    make_room_for_images()
    from flmm_ros.camera import CameraNode
    from flmm_ros.spinning import run_node

    return run_node(CameraNode, args)


if __name__ == "__main__":
    sys.exit(main())
