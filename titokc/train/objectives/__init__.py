"""What phases train for, a file each: settings, which a recipe holds, and what acts on them, behind one interface.

Settings are frozen dataclasses with a method `scaled(times)`, for batches that are so many times as large.
"""

from collections.abc import Sequence
from typing import Any

from titokc.train.objectives.interface import Objective, Setup
from titokc.train.objectives.natural import Natural, NaturalObjective
from titokc.train.objectives.pixels import PixelObjective, Pixels
from titokc.train.objectives.proxy import Proxy, ProxyObjective

# As recipe.json calls it -> its settings, its objective.
TABLE: dict[str, tuple[type[Any], type[Objective[Any]]]] = {
    "natural": (Natural, NaturalObjective),
    "pixels": (Pixels, PixelObjective),
    "proxy": (Proxy, ProxyObjective),
}


def begin(phases: Sequence[Any], setup: Setup) -> list[Objective[Any] | None]:
    """The objective of each `titokc.train.recipes.schema.Phase`, None where its share is 0; networks whose weights are
    missing are told here."""
    kinds = dict(TABLE.values())
    return [kinds[type(phase.objective)](phase.objective, setup) if phase.share else None for phase in phases]
