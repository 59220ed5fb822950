"""API keys: what a token opens, and what is kept of it."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine, text

from router.errors import ParameterError


def test_a_token_gives_its_key_and_nothing_else_does(store, opened):
    key, token = store.create_key("app", ["route", "feedback"], budget_usd=2.5, requests_per_minute=60)
    _, other = store.create_key("other", ["admin"])
    prefix, key_id, secret = token.split("_", 2)
    assert (prefix, key_id) == ("fp", key.key_id)
    assert opened().find_key(token) == key
    assert key.scopes == {"route", "feedback"}
    assert (key.budget_usd, key.requests_per_minute, key.expires_at, key.revoked_at) == (2.5, 60, None, None)
    assert store.find_key(other) != key
    wrong = [
        token[:-1],
        token + "A",
        f"fp_{key_id}_{other.split('_', 2)[2]}",
        f"xx_{key_id}_{secret}",
        f"fp__{secret}",
        "",
        "fp",
        "fp_\0_\0",
        "fp_\ud800_\ud800",
    ]
    assert [store.find_key(text) for text in wrong] == [None] * len(wrong)


def test_the_secret_is_not_in_the_database(store, url):
    _, token = store.create_key("app", ["route"])
    engine = create_engine(url)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM api_keys")).one()
    engine.dispose()
    assert token.split("_", 2)[2] not in " ".join(map(str, row))


def test_revoked_and_expired_keys_open_nothing_but_are_listed(store):
    assert not store.any_keys()
    revoked, token = store.create_key("a", ["route"])
    expired, late_token = store.create_key("b", ["route"], expires_at=time.time() - 1)
    assert store.revoke_key(revoked.key_id)
    assert not store.revoke_key(revoked.key_id)
    assert not store.revoke_key("unknown")
    assert store.find_key(token) is None
    assert store.find_key(late_token) is None
    listed = store.keys()
    assert [key.key_id for key in listed] == [revoked.key_id, expired.key_id]
    assert listed[0].revoked_at is not None
    assert store.any_keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scopes": []}, "'scopes' must be of route, read, feedback, admin .got none"),
        ({"scopes": ["route", "all"]}, "got all"),
        ({"name": ""}, "'name' must be text"),
        ({"budget_usd": -1.0}, "'budget_usd' must be finite, at least 0"),
        ({"budget_usd": float("nan")}, "'budget_usd'"),
        ({"requests_per_minute": 0}, "'requests_per_minute' must be finite, at least 1"),
    ],
)
def test_keys_that_break_a_rule_are_refused(store, changed, message):
    with pytest.raises(ParameterError, match=message):
        store.create_key(**({"name": "app", "scopes": ["route"]} | changed))
    assert not store.any_keys()
