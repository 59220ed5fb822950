"""A run told in one self-contained HTML page.

:class:`ReportData` holds plain arrays and strings, :func:`write_report` turns them into ``report.html``:
pictures are inline SVG drawn by matplotlib, so the file needs nothing beside it and no network.
"""

from __future__ import annotations

from jobs.report.data import (
    AccuracyCurve,
    CostCurve,
    Fact,
    ModelShares,
    Neighbour,
    Neighbourhood,
    QualityRow,
    ReportData,
    RoutedUser,
    RouterReport,
    SupportCurves,
    TrainingCurve,
    UserCard,
    UserMap,
)
from jobs.report.html import check_page
from jobs.report.page import write_report

__all__ = [
    "AccuracyCurve",
    "CostCurve",
    "Fact",
    "ModelShares",
    "Neighbour",
    "Neighbourhood",
    "QualityRow",
    "ReportData",
    "RoutedUser",
    "RouterReport",
    "SupportCurves",
    "TrainingCurve",
    "UserCard",
    "UserMap",
    "check_page",
    "write_report",
]
