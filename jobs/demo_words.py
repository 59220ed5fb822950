"""Vocabulary of the built-in example data: categories, personas, tasks and invented language models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CATEGORIES: dict[str, tuple[str, ...]] = {
    "camping": ("camping-stove", "tent", "sleeping-bag", "head-torch", "hammock", "water-filter"),
    "cycling": ("bike-helmet", "pannier", "cycle-pump", "saddle", "bike-light", "chain-tool"),
    "kitchen": ("chef-knife", "saucepan", "coffee-grinder", "cast-iron-pan", "teapot", "mixing-bowl"),
    "garden": ("pruning-shears", "planter", "watering-can", "seed-box", "garden-fork", "compost-bin"),
    "books": ("crime-novel", "poetry-book", "history-book", "travel-guide", "cookbook", "comic"),
    "games": ("board-game", "card-game", "jigsaw", "dice-set", "game-controller", "puzzle-cube"),
    "music": ("vinyl-record", "ukulele", "guitar-strings", "metronome", "headphones", "songbook"),
    "photo": ("camera-strap", "tripod", "prime-lens", "film-roll", "light-meter", "photo-paper"),
    "home": ("desk-lamp", "wool-blanket", "wall-clock", "picture-frame", "candle", "door-mat"),
    "fitness": ("yoga-mat", "kettlebell", "skipping-rope", "foam-roller", "running-belt", "dumbbell"),
    "craft": ("knitting-yarn", "sketchbook", "watercolours", "sewing-kit", "clay", "linocut-set"),
    "tech": ("usb-hub", "keyboard", "power-bank", "web-camera", "monitor-arm", "smart-plug"),
}
"""Category to the nouns of its items."""

N_ARCHETYPES = 8

PERSONAS: dict[str, tuple[float, float, float, float]] = {
    "frugal": (0.6, 1.3, 0.2, 0.0),
    "expert": (1.6, -0.2, 0.0, -0.4),
    "hurried": (0.4, 0.3, 1.5, 0.0),
    "sociable": (0.5, 0.2, 0.1, 1.5),
}
"""Persona to its weights on a model's quality, cheapness, speed and warmth (each standardised)."""

TASKS: dict[str, tuple[str, ...]] = {
    "advice": ("Which {} should a beginner choose?", "Is a cheap {} worth it, or should I spend more?"),
    "writing": ("Write a short review of my new {}.", "Draft a polite note asking to return a {}."),
    "planning": ("Plan a weekend around trying out my {}.", "What do I need besides a {}?"),
    "maths": ("A {} costs 48 after 20 % off. What did it cost before?", "Split the price of a {} by 7."),
    "code": ("Write a function that finds the cheapest {} in a list.", "Sort a table of every {} by price."),
    "facts": ("When was the {} invented?", "How is a {} made?"),
}
"""Task to phrases of a query about a noun."""

ANSWER_TOKENS = np.array([220.0, 320.0, 420.0, 160.0, 380.0, 140.0])
"""Median length of an answer by task, in tokens."""

HOURS = np.array([2.0, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 13, 9, 5])
"""Relative traffic by hour of the day, UTC."""


class Llm(NamedTuple):
    """An invented language model; ``quality`` follows the order of :data:`TASKS`."""

    name: str
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    tokens_per_s: float
    warmth: float
    quality: tuple[float, ...]
    description: str
    context_tokens: int
    capabilities: tuple[str, ...]


LLMS: tuple[Llm, ...] = (
    Llm(
        "atlas-large",
        3.0,
        15.0,
        45,
        0.1,
        (0.90, 0.88, 0.90, 0.92, 0.90, 0.91),
        "Large, thorough.",
        200_000,
        ("tools", "vision"),
    ),
    Llm(
        "atlas-small",
        0.3,
        1.2,
        240,
        0.0,
        (0.70, 0.68, 0.66, 0.64, 0.62, 0.70),
        "Small, quick.",
        128_000,
        ("tools",),
    ),
    Llm(
        "birch-chat",
        0.8,
        3.2,
        90,
        1.0,
        (0.78, 0.84, 0.78, 0.55, 0.50, 0.72),
        "For friendly conversation.",
        32_000,
        (),
    ),
    Llm(
        "cobalt-code",
        1.0,
        5.0,
        80,
        -0.8,
        (0.60, 0.55, 0.64, 0.86, 0.93, 0.62),
        "For code and maths.",
        128_000,
        ("tools",),
    ),
    Llm(
        "delta-mini",
        0.1,
        0.4,
        120,
        -0.2,
        (0.56, 0.54, 0.50, 0.42, 0.40, 0.55),
        "Smallest, cheapest.",
        16_000,
        (),
    ),
    Llm(
        "ember-pro",
        2.0,
        8.0,
        60,
        0.6,
        (0.86, 0.92, 0.85, 0.74, 0.70, 0.85),
        "Careful, warm writer.",
        64_000,
        ("tools", "vision"),
    ),
)
