"""From scores, costs and constraints to a choice: which LLM answers, which stand by, and why.

The policy knows no model and no framework: it gets arrays of scores, one entry per LLM of a
:class:`Catalogue`, and imports numpy only.
"""

from router.policy.catalogue import Catalogue, Llm
from router.policy.constraints import Request
from router.policy.decision import Decision, Policy
from router.policy.exploration import EpsilonGreedy, Exploration, Greedy, Thompson

__all__ = [
    "Catalogue",
    "Decision",
    "EpsilonGreedy",
    "Exploration",
    "Greedy",
    "Llm",
    "Policy",
    "Request",
    "Thompson",
]
