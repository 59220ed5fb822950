"""How good a router is beyond its headline: calibration, groups of users, cost, and the bound by Bayes."""

from router.evaluate.bayes import BayesRouter
from router.evaluate.calibration import Calibration, best_temperature, calibration
from router.evaluate.costs import CostEfficiency, cost_efficiency
from router.evaluate.groups import GroupFigure, activity_thirds, by_group

__all__ = [
    "BayesRouter",
    "Calibration",
    "CostEfficiency",
    "GroupFigure",
    "activity_thirds",
    "best_temperature",
    "by_group",
    "calibration",
    "cost_efficiency",
]
