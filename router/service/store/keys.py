"""API keys: tokens of 256 random bits, of which the store keeps SHA-256.

A hash made slow on purpose protects passwords that people think of; a random token of this length cannot be
guessed, so a quick hash is enough, and is checked at each request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from typing import Any, cast

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from router.errors import ParameterError
from router.service.store.checks import check_name, check_number
from router.service.store.records import SCOPES, ApiKey, Scope
from router.service.store.tables import api_keys

TOKEN_PREFIX = "fp_"
_FIND = select(api_keys).where(api_keys.c.key_id == bindparam("key_id"))
_NO_HASH = bytes(32)


def create(
    connection: Connection,
    name: str,
    scopes: Collection[str],
    budget_usd: float | None,
    requests_per_minute: int | None,
    expires_at: float | None,
    now: float,
) -> tuple[ApiKey, str]:
    """Add a key; gives it with its token."""
    check_name("name", name)
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ParameterError(f"'scopes' must be of {', '.join(SCOPES)} (got {', '.join(unknown) or 'none'})")
    check_number("budget_usd", budget_usd, at_least=0.0)
    check_number("requests_per_minute", requests_per_minute, at_least=1, at_most=2**31 - 1)
    check_number("expires_at", expires_at)
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key = ApiKey(
        key_id=key_id,
        name=name,
        scopes=frozenset(cast("Collection[Scope]", scopes)),
        budget_usd=budget_usd,
        requests_per_minute=requests_per_minute,
        created_at=now,
        expires_at=expires_at,
        revoked_at=None,
    )
    row = {
        "key_id": key_id,
        "name": name,
        "secret_sha256": _digest(secret),
        "scopes": " ".join(scope for scope in SCOPES if scope in key.scopes),
        "budget_usd": budget_usd,
        "requests_per_minute": requests_per_minute,
        "created_at": now,
        "expires_at": expires_at,
    }
    connection.execute(insert(api_keys), row)
    return key, f"{TOKEN_PREFIX}{key_id}_{secret}"


def find(connection: Connection, token: str, now: float) -> ApiKey | None:
    """The valid key of a token; the work is the same whether or not there is one."""
    prefix, _, rest = token.partition("_")
    key_id, _, secret = rest.partition("_")
    row = connection.execute(
        _FIND, {"key_id": key_id if f"{prefix}_" == TOKEN_PREFIX and key_id.isalnum() else ""}
    ).first()
    matches = hmac.compare_digest(_digest(secret), _NO_HASH if row is None else row.secret_sha256)
    if row is None or not matches:
        return None
    key = _key(row)
    expired = key.expires_at is not None and key.expires_at <= now
    return None if expired or key.revoked_at is not None else key


def all_keys(connection: Connection) -> list[ApiKey]:
    """All keys, oldest first."""
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)
    return [_key(row) for row in connection.execute(query)]


def any_keys(connection: Connection) -> bool:
    """Whether a key was ever made."""
    return connection.execute(select(api_keys.c.key_id).limit(1)).first() is not None


def revoke(connection: Connection, key_id: str, now: float) -> bool:
    """Revoke a key; False where there is none, or none that was valid."""
    query = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
    return connection.execute(query.values(revoked_at=now)).rowcount == 1


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        name=row.name,
        scopes=frozenset(row.scopes.split()),
        budget_usd=row.budget_usd,
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
