"""Item ranking in closed form: co-occurrence, regression on neighbours, low-pass filter, and their blends.

Needs numpy, scipy and numba only; nothing is trained by gradients.
"""

from router.items.choosing import Quality, item_quality, search_coordinates, split_interactions
from router.items.linear import ItemMap, blend
from router.items.ranker import ItemRanker, default_terms
from router.items.terms import Cooccurrence, LowPass, NeighborRidge, Term, check_interactions

__all__ = [
    "Cooccurrence",
    "ItemMap",
    "ItemRanker",
    "LowPass",
    "NeighborRidge",
    "Quality",
    "Term",
    "blend",
    "check_interactions",
    "default_terms",
    "item_quality",
    "search_coordinates",
    "split_interactions",
]
