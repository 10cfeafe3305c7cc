"""Health as /diagnostics says it. Knows no topics and no models."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from flmm_core.serving.health import HealthReport, Level

_LEVELS = {Level.OK: DiagnosticStatus.OK, Level.WARN: DiagnosticStatus.WARN, Level.ERROR: DiagnosticStatus.ERROR}


def diagnostic_status(name: str, report: HealthReport) -> DiagnosticStatus:
    """A report as a message.

    Args:
        name: of the node.
        report: how it is.
    """
    return DiagnosticStatus(
        level=_LEVELS[report.level],
        name=f"{name}: grounding",
        message=report.message,
        hardware_id=report.values.get("device", ""),
        values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
    )
