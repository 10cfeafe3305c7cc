"""Entry point of the picking example: installs signal handlers before the imports, which take seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flmm_ros.signals import leave_on_signals


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        0; 2 for a wrong parameter.
    """
    leave_on_signals()
    from flmm_ros.pick import PickNode
    from flmm_ros.spinning import run_node

    return run_node(PickNode, args)


if __name__ == "__main__":
    sys.exit(main())
