"""Weighted max-min fair shares with demand caps, by filling up with water."""

from __future__ import annotations

from collections.abc import Mapping


def max_min_shares(
    capacity: float, demands: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Share of each user: raise all levels in proportion to the weights until demands or capacity are met."""
    shares = dict.fromkeys(demands, 0.0)
    thirsty = {user for user, demand in demands.items() if demand > 0}
    left = capacity
    while thirsty and left > 0:
        total = sum(weights[user] if weights else 1.0 for user in thirsty)
        level = left / total
        full = {user for user in thirsty if demands[user] <= level * (weights[user] if weights else 1.0)}
        if not full:
            for user in thirsty:
                shares[user] = level * (weights[user] if weights else 1.0)
            break
        for user in full:
            shares[user] = demands[user]
            left -= demands[user]
        thirsty -= full
    return shares
