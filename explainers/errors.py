"""What can go wrong while explaining.

ExplainerError
├── InvalidRequest           the caller's input cannot be explained as it stands
│   ├── ContextLengthExceeded
│   └── MissingCapability    the model cannot serve this request, or cannot be explained exactly
├── InconsistentAnswer       a model's outputs, or scores made of them, break a law that they must obey
├── UnreadableModel          the files of a model are missing, broken or of an unsafe format
├── PredictorFailed          a user's model failed while it predicted: its process ended, or it took too long
│   ├── OutOfTime
│   └── ProcessCrashed
└── OutOfMemory              too large for this machine even in the smallest pieces

Messages name fields, counts and limits, never the text of a prompt.
"""


class ExplainerError(Exception):
    """The root of this room's errors."""


class InvalidRequest(ExplainerError):
    """A bad value; `pointer` is its place in the request as a JSON pointer, where known."""

    def __init__(self, message: str, pointer: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus target do not fit into the model's context."""


class MissingCapability(InvalidRequest):
    """The model cannot do what is asked: an image for a text model, an architecture that escapes suppression."""


class InconsistentAnswer(ExplainerError):
    """Outputs that are not finite, scores that do not add up, a prediction other than the stored one."""


class UnreadableModel(ExplainerError):
    """The folder holds no model that can be loaded safely."""


class PredictorFailed(ExplainerError):
    """The model gave no answer to these rows; others may be answered."""


class OutOfTime(PredictorFailed):
    """Its process took longer than it may, by the clock or in time of the processor, and was ended."""


class ProcessCrashed(PredictorFailed):
    """Its process ended by its own doing; `cause` is the name of a signal, or its status."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message, cause)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[0])


class OutOfMemory(ExplainerError):
    """The smallest piece of the work does not fit into memory."""
