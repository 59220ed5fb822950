"""Item ranking in closed form: co-occurrence, regression on neighbours, low-pass filter, and their blends.

These need numpy, scipy and numba only. A head trained by gradients (:mod:`router.items.learning`) needs torch
and is a further term of a blend.
"""

from router.items.choosing import Quality, item_quality, search_coordinates, split_interactions
from router.items.linear import ItemMap, blend
from router.items.ranker import ItemRanker, default_terms
from router.items.terms import Cooccurrence, LowPass, NeighborRidge, Term, check_interactions
from router.items.tuning import RP3BETA, TermChoice, choose_terms

__all__ = [
    "RP3BETA",
    "Cooccurrence",
    "ItemMap",
    "ItemRanker",
    "LowPass",
    "NeighborRidge",
    "Quality",
    "Term",
    "TermChoice",
    "blend",
    "check_interactions",
    "choose_terms",
    "default_terms",
    "item_quality",
    "search_coordinates",
    "split_interactions",
]
