"""What a router is trained on, from files to arrays."""

from router.dataset.answers import Expected
from router.dataset.events import Events, read_events
from router.dataset.llms import read_llms
from router.dataset.queries import Tasks
from router.dataset.reading import (
    Reading,
    RouterData,
    RouterFiles,
    encoder_name,
    read_router_data,
    table_checksum,
)

__all__ = [
    "Events",
    "Expected",
    "Reading",
    "RouterData",
    "RouterFiles",
    "Tasks",
    "encoder_name",
    "read_events",
    "read_llms",
    "read_router_data",
    "table_checksum",
]
