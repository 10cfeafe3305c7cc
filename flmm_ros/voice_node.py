"""Entry point of the voice node: installs signal handlers before the imports, which take seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flmm_ros.signals import leave_on_signals


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        0; 1 if the source of speech or the recogniser is not available; 2 for a wrong parameter.
    """
    leave_on_signals()
    from flmm_ros.spinning import run_node
    from flmm_ros.voice import VoiceNode

    return run_node(VoiceNode, args)


if __name__ == "__main__":
    sys.exit(main())
