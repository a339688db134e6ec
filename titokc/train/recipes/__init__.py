"""The named recipes, a file for each tokenizer; `titokc.train.recipes.schema` says what a recipe is."""

from titokc.errors import UsageError
from titokc.train.recipes import nano, titok
from titokc.train.recipes.schema import Recipe

# The name of a recipe -> what makes it.
TABLE = nano.RECIPES | titok.RECIPES
NAMES = tuple(TABLE)


def named(name: str) -> Recipe:
    """The recipe called `name`; UsageError lists them all otherwise."""
    if name not in TABLE:
        raise UsageError(f"recipe {name!r} is not known; there are {', '.join(NAMES)}")
    return TABLE[name]()
