"""The refusals of the emulator; each carries the gRPC status it is answered with.

EmulatorError
├── InvalidArgument      the request can never be right
├── NotFound             a topic, subscription or snapshot it names does not exist
├── AlreadyExists        a name it wants to create is taken
├── FailedPrecondition   right in itself, not in the present state
├── ResourceExhausted    a bound of the emulator is reached; try again later
├── Unavailable          the broker is (or pretends to be) down; try again later
└── Unimplemented        Google's service does it, the emulator does not
"""

from typing import ClassVar

from models.errors import HeadraceError


class EmulatorError(HeadraceError):
    """A request was refused; `status` is the name of its gRPC status code."""

    status: ClassVar[str]


class InvalidArgument(EmulatorError):
    status = "INVALID_ARGUMENT"


class NotFound(EmulatorError):
    status = "NOT_FOUND"


class AlreadyExists(EmulatorError):
    status = "ALREADY_EXISTS"


class FailedPrecondition(EmulatorError):
    status = "FAILED_PRECONDITION"


class ResourceExhausted(EmulatorError):
    status = "RESOURCE_EXHAUSTED"


class Unavailable(EmulatorError):
    status = "UNAVAILABLE"


class Unimplemented(EmulatorError):
    status = "UNIMPLEMENTED"
