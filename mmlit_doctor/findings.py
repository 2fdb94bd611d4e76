"""Define what a check raises: a fault, or advice."""


class _Finding(Exception):
    def __init__(self, seen: str, mend: str = ''):
        super().__init__(seen, mend)
        self.seen, self.mend = seen, mend

    def __str__(self) -> str:
        return f'{self.seen}: {self.mend}' if self.mend else self.seen


class Fault(_Finding):
    """Something is missing or broken.

    Args:
        seen: What was found.
        mend: The command that mends it.
    """


class Advice(_Finding):
    """Nothing is broken, but something is worth saying.

    Args:
        seen: What was found.
        mend: The command that follows the advice; '' if there is nothing to run.
    """


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    lines = str(error).splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
