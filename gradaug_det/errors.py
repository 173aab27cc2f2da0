"""Errors that a user can act on: whatever this package raises on purpose has one base class."""


class GradAugError(Exception):
    """Base class of the errors raised on purpose by gradaug_det."""


class ConfigError(GradAugError, ValueError):
    """A setting is unknown, out of range or contradicts another one."""


class UnslimmableError(GradAugError, TypeError):
    """A network has a layer that cannot be reduced to the first share of its channels."""


class DataError(GradAugError, ValueError):
    """A dataset, an annotation or an image cannot be used as it is."""
