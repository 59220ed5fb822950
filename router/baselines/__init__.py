"""Routers to be measured against: counts, neighbours, factors, response features, and the published system.

All but :mod:`router.baselines.personalized_router` and :mod:`router.baselines.lightgcn` need numpy and scipy
only.
"""

from router.baselines.common import log_likelihood
from router.baselines.counts import PopularityRouter, UserKnnRouter, UserTaskRouter
from router.baselines.factors import FactorRouter
from router.baselines.telemetry import TelemetryRouter

__all__ = [
    "FactorRouter",
    "PopularityRouter",
    "TelemetryRouter",
    "UserKnnRouter",
    "UserTaskRouter",
    "log_likelihood",
]
