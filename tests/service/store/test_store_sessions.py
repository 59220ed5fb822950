"""Sessions: the last LLM of a conversation, for all workers."""

from __future__ import annotations

import pytest

from router.errors import ParameterError
from router.service.store import Session


def test_a_session_is_the_last_that_was_kept(opened):
    here, there = opened(), opened()
    assert here.session("s") is None
    here.keep_session("s", "anna", "brief", "d1", 1.0)
    here.keep_session("other", None, "kind", "d2", 2.0)
    there.keep_session("s", "anna", "kind", "d3", 3.0)
    assert here.session("s") == Session("s", "anna", "kind", "d3", 3.0)
    assert here.session("other") == Session("other", None, "kind", "d2", 2.0)


def test_a_session_needs_a_storable_id(store):
    with pytest.raises(ParameterError, match="'session_id' must be text"):
        store.keep_session("a\0", None, "brief", "d", 1.0)
    assert store.session("") is None
