"""Readers of public data sets, with errors that name the file and the row. Pickle files are refused."""

from router.loaders.interactions import (
    Interactions,
    interaction_matrices,
    read_adjacency_lists,
    read_recbole,
    read_square_adjacency,
)
from router.loaders.responses import (
    PersonaRoute,
    ResponseTable,
    read_persona_route,
    read_route_profile,
    read_routerbench,
)

__all__ = [
    "Interactions",
    "PersonaRoute",
    "ResponseTable",
    "interaction_matrices",
    "read_adjacency_lists",
    "read_persona_route",
    "read_recbole",
    "read_route_profile",
    "read_routerbench",
    "read_square_adjacency",
]
