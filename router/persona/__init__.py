"""persona-sim: real responses of eight LLMs, simulated users who choose among them.

Users, their tastes and their choices are drawn from a random utility model, so the utility of every LLM for
every user and query is known and a router's choices can be judged against it. Nothing here shows how real
people behave.
"""

from router.persona.data import ChoiceData, ChoiceRouter, Choices, Support
from router.persona.metrics import ChoiceQuality, choice_quality, paired_difference
from router.persona.protocols import (
    TRACKS,
    NewLlmQuality,
    SeenNew,
    Track,
    evaluate_new_llm,
    evaluate_new_users,
    evaluate_warm,
    judge_new_users,
    new_llm_data,
    new_user_data,
    warm_data,
)
from router.persona.world import World, load_world

__all__ = [
    "TRACKS",
    "ChoiceData",
    "ChoiceQuality",
    "ChoiceRouter",
    "Choices",
    "NewLlmQuality",
    "SeenNew",
    "Support",
    "Track",
    "World",
    "choice_quality",
    "evaluate_new_llm",
    "evaluate_new_users",
    "evaluate_warm",
    "judge_new_users",
    "load_world",
    "new_llm_data",
    "new_user_data",
    "paired_difference",
    "warm_data",
]
