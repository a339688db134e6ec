"""Every error that titokc raises for something that came from outside, and its exit code.

One family: catch `TitokcError` to catch them all. Only the command line prints or exits; everything
else raises. A message is one line and names what was found, what was expected, and where.
"""


class TitokcError(Exception):
    """Base of the family. `exit_code` is what the command line exits with; `concerns_all` says, of one of many
    conversions, that it would be raised for the others as well."""

    exit_code = 1
    concerns_all = False


class InputError(TitokcError):
    """An input could not be used: unreadable image, missing file, empty folder."""

    exit_code = 1


class OutputError(TitokcError):
    """An output could not be written: it exists, the disk is full, the folder is read-only."""

    exit_code = 1


class UsageError(TitokcError):
    """What was asked for makes no sense: a token count that the model lacks, an impossible budget."""

    exit_code = 2


class ContainerError(TitokcError):
    """The bytes are not a valid `.tok` file. Subclasses in `titokc.container` name the broken rule."""

    exit_code = 3


class ModelError(TitokcError):
    """A model cannot be used."""

    exit_code = 4


class ModelNotFoundError(ModelError):
    """The model, or its weights, are not where they were looked for."""


class ModelMismatchError(ModelError):
    """The weights at hand are not those the file was made with; both are named."""


class WeightsError(ModelError):
    """A weights file does not fit its configuration: names what is missing, extra or misshapen."""


class MetricWeightsMissingError(TitokcError):
    """A metric's network weights are absent; says which file, where it was looked for, how to get it."""

    exit_code = 5


class LimitExceededError(TitokcError):
    """An image or header declares more than allowed. `limit`: the field of `titokc.Limits` that is exceeded."""

    exit_code = 6

    def __init__(self, message: str, limit: str | None = None) -> None:
        super().__init__(message)
        self.limit = limit
