"""Errors that a user can act on. The command line prints their message without a traceback and exits with code 2."""


class UserError(Exception):
    """Something the user gave does not fit; the message says what was given, what is expected and what to do."""


class ConfigurationError(UserError):
    """A configuration value, name or combination that cannot work."""


class DataError(UserError):
    """Demonstrations that are missing, damaged or of the wrong shape."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, of another format, or does not fit the task."""
