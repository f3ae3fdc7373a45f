"""The package's own errors: every mistake a user can make has one of these types.

A command prints the message of such an error without a traceback and exits with its ``exit_code``;
anything else is a fault of the program and keeps its traceback.
"""

from __future__ import annotations


class DynamicDPOError(Exception):
    """Base of all errors raised on purpose; says what was given, what was expected and what to do.

    Attributes:
        exit_code: What a command that it ends returns.
        said: Whether another rank of the run has met the same and tells the user.
    """

    exit_code = 1
    said = False


class ConfigError(DynamicDPOError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class DataError(DynamicDPOError, ValueError):
    """A data file or its rows cannot be used as preference pairs or conversations."""

    exit_code = 2


class ModelError(DynamicDPOError, ValueError):
    """A model or tokenizer cannot be found, loaded or used together with another."""

    exit_code = 2


class CheckpointError(DynamicDPOError):
    """A checkpoint, saved model or store entry is missing, incomplete or does not fit the run."""

    exit_code = 2


class NonFiniteError(DynamicDPOError):
    """Too many margins, losses or log-probabilities were NaN or infinite for the run to go on."""

    exit_code = 1


class RunStopped(DynamicDPOError):
    """A method has asked for the end of the run, which was saved first and can be resumed."""

    exit_code = 1


class StageError(DynamicDPOError):
    """A command that a loop runs has failed; its own message stands above."""

    exit_code = 1


class JudgeError(DynamicDPOError):
    """A judge could not be reached or did not give a usable verdict."""

    exit_code = 1


class ServerError(DynamicDPOError):
    """A server that speaks OpenAI's protocol cannot be reached, refuses a request or gives no usable reply."""

    exit_code = 1
