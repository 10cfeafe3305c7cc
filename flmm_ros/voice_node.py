"""Entry point of the voice: signals first, then the imports, which take seconds. The node is in voice.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flmm_ros.signals import leave_on_signals


def main(args: Sequence[str] | None = None) -> int:
    """Listen and speak until SIGINT or SIGTERM.

    Returns:
        0; 1 if there is nothing to listen to, or to recognise with; 2 for a wrong parameter.
    """
    leave_on_signals()
    from flmm_ros.spinning import run_node
    from flmm_ros.voice import VoiceNode

    return run_node(VoiceNode, args)


if __name__ == "__main__":
    sys.exit(main())
