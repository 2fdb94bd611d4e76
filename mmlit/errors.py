"""Define the errors that users can mend, and spell any error in one line."""

import pickle


class UserError(Exception):
    """The user can mend this: the text names what is wrong and what would be right.

    Commands print it as one line, without a traceback. Each subclass also derives from
    the builtin error that its callers may expect.
    """


class UnusableEnvironmentError(UserError, RuntimeError):
    """A package is missing, broken or too old.

    Not an ImportError: mmengine turns those, when `custom_imports` meets one, into
    advice about PYTHONPATH that hides the sentence.

    Args:
        seen: What was found.
        mend: The command that mends it.
    """

    def __init__(self, seen: str, mend: str):
        super().__init__(seen, mend)
        self.seen, self.mend = seen, mend

    def __str__(self) -> str:
        return f'{self.seen}: {self.mend}'


class UnsafeCheckpointError(UserError, pickle.UnpicklingError):
    """A checkpoint asks for code or objects that no such file needs."""


class BrokenCheckpointError(UserError, ValueError):
    """A file is not a checkpoint, or not a whole one."""


class CheckpointWriteError(UserError, OSError):
    """A checkpoint could not be written; the previous files are untouched."""


class NonFiniteLossError(UserError, FloatingPointError):
    """The loss or the weights are NaN or infinite."""


class BrokenSampleError(UserError, RuntimeError):
    """An image or its annotation cannot be used; the text names the file."""


def spell_error(error: BaseException) -> str:
    """Return the class and the first paragraph of an error, in one line."""
    text = ' '.join(str(error).strip().split('\n\n')[0].split())
    name = type(error).__name__
    return f'{name}: {text[:300]}' if text else name
