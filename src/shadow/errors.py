"""The faults that `shadow` expects. Anything else is a bug and keeps its traceback."""


class ShadowError(Exception):
    """Something that could not be done: one line for people, and what to do next.

    The command line prints both and exits with 1.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ShadowError):
    """A request that makes no sense whatever the files hold. Exit code 2."""


class KeptError(ShadowError):
    """A finished report was left as it is, since what was asked for differs from it."""
