"""Errors that a user can act on: whatever this package raises on purpose has one base class."""


class GradAugError(Exception):
    """Base class of the errors raised on purpose by gradaug_det."""


class ConfigError(GradAugError, ValueError):
    """A setting is unknown, out of range or contradicts another one.

    Args:
        key: the setting; adapters put their framework's spelling in its place.
        problem: the rest of the sentence: values allowed, value given, what to do.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key, self.problem = key, problem

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.problem)


class NonFiniteLossError(GradAugError, FloatingPointError):
    """A sub-network's loss, or the gradient of a step, is NaN or infinite; the optimizer has not
    stepped.

    Args:
        message: a sentence.
        sub: the sub-network; None if it is the step's gradient.
        losses: the values that are not finite, by name.
        here: whether it happened in this process, not in another one of the training.
    """

    def __init__(
        self,
        message: str,
        sub: object = None,
        losses: dict[str, float] | None = None,
        here: bool = True,
    ) -> None:
        super().__init__(message)
        self.sub, self.losses, self.here = sub, losses or {}, here


class UnslimmableError(GradAugError, TypeError):
    """A network has a layer that cannot be reduced to the first share of its channels."""


class DataError(GradAugError, ValueError):
    """A dataset, an annotation or an image cannot be used as it is."""


class ZooError(GradAugError):
    """A zoo entry, its download or a file of weights cannot be used as it is."""
