"""All errors that howwhen raises on purpose.

    HowwhenError
    ├── InputError            an input that cannot be used; the message says what to do
    │   ├── SettingsError     an unknown key or an impossible value in flags or YAML
    │   ├── ProblemError      a problem file that is missing, empty or malformed
    │   ├── ModelError        a model that cannot be found, read, or steered
    │   ├── PairError         two models that cannot work as a pair
    │   ├── SteeringError     vectors that do not fit: category, width, layer, values
    │   └── LengthError       a prompt that leaves no room for its answer in a model's context
    ├── StoreError            a file or run folder that is damaged, busy, or lacks a step
    │   └── RedoError         finished work was made with other settings, and would be replaced
    ├── MissingExtraError     an optional dependency that is not installed
    ├── OutOfTimeError        a training's time budget is used up; the same call resumes it
    ├── JudgeError            a judge that gave no reply (in `judge.endpoint`)
    └── BusyError             a server whose queue is full, or that is closing

Add an error to the tree only if a caller could act on it differently. Messages say what was found,
what was expected and what to type next.
"""


class HowwhenError(Exception):
    """Root of the tree; the command line prints it as one paragraph and exits with code 2."""


class InputError(HowwhenError, ValueError):
    """An input that cannot be used."""


class SettingsError(InputError):
    """An unknown key or an impossible value in flags or YAML."""


class ProblemError(InputError):
    """A problem file that is missing, empty or malformed."""


class ModelError(InputError):
    """A model that cannot be found, read, or steered."""


class PairError(InputError):
    """Two models that cannot work as a pair."""


class SteeringError(InputError):
    """Vectors that do not fit the model or the taxonomy."""


class LengthError(InputError):
    """A prompt that leaves no room for its answer in a model's context."""


class StoreError(HowwhenError):
    """A file or run folder that is damaged, busy, or lacks a step."""


class RedoError(StoreError):
    """A step holds work made with other settings, which is replaced only if that is allowed."""


class MissingExtraError(HowwhenError, ImportError):
    """An optional dependency that is not installed."""


class OutOfTimeError(HowwhenError):
    """A training's time budget is used up; the same call resumes it."""


class BusyError(HowwhenError):
    """A server whose queue is full, or that is closing."""
