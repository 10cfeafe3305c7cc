"""Entry point of the picking example: signals first, then the imports, which take seconds. The node is in pick.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flmm_ros.signals import leave_on_signals


def main(args: Sequence[str] | None = None) -> int:
    """Turn answers into poses until SIGINT or SIGTERM.

    Returns:
        0; 2 for a wrong parameter.
    """
    leave_on_signals()
    from flmm_ros.pick import PickNode
    from flmm_ros.spinning import run_node

    return run_node(PickNode, args)


if __name__ == "__main__":
    sys.exit(main())
