"""One tree of errors. Each that can reach a client knows its HTTP status and its public code."""

from __future__ import annotations


class UnpromptError(Exception):
    """Root of everything that this package raises on purpose."""


class ConfigError(UnpromptError):
    """A setting is wrong. The text names the file, the key and the remedy."""


class StoreError(UnpromptError):
    """The store cannot be read or written."""


class DatasetError(UnpromptError):
    """No dataset worth training on can be made. The text says what is missing."""


class RequestFileError(UnpromptError):
    """A file of recorded requests cannot be read. The text names the file, the line and the reason."""


class TaskError(UnpromptError):
    """No such task, template or candidate."""


class GatewayError(UnpromptError):
    """An error of our own that a client sees, in its provider's error shape. `retry_after`: seconds, for the
    header of that name."""

    status = 500
    code = "internal"
    retry_after: int | None = None


class BadRequest(GatewayError):
    """The request cannot be relayed as it stands."""

    status = 400
    code = "bad_request"


class Forbidden(GatewayError):
    """The admin surface was asked for without its token."""

    status = 403
    code = "forbidden"


class UnknownPath(GatewayError):
    """No provider answers for this path."""

    status = 404
    code = "unknown_path"


class Refused(GatewayError):
    """What was asked for is not done: the gate, or a file of a person, says no."""

    status = 409
    code = "refused"


class UnknownPage(GatewayError):
    """No such task or report on our own pages."""

    status = 404
    code = "unknown_page"


class UnknownExchange(GatewayError):
    """Feedback on an exchange that is not recorded."""

    status = 404
    code = "unknown_exchange"


class BodyTooLarge(GatewayError):
    """The request is larger than `server.max_body_mb`, or than its route allows."""

    status = 413
    code = "body_too_large"


class TooManyRequests(GatewayError):
    """The route, or the key on it, has as many requests under way as its limit allows."""

    status = 429
    code = "too_many_requests"
    retry_after = 1


class Overloaded(GatewayError):
    """The gateway has as much under way as it may, or no file descriptors left."""

    status = 503
    code = "overloaded"
    retry_after = 1


class StoreUnavailable(GatewayError):
    """The exchange cannot be recorded and `capture.on_failure` is `fail_closed`."""

    status = 503
    code = "store_unavailable"


class UpstreamError(GatewayError):
    """The upstream gave no usable answer. `reached` tells whether it may have seen the request."""

    status = 502
    code = "upstream_error"

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class UpstreamUnreachable(UpstreamError):
    """No connection: name not found, refused, TLS failure."""

    code = "upstream_unreachable"

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=False)


class UpstreamBroken(UpstreamError):
    """The connection closed, or the answer is not HTTP, before the answer was whole."""

    code = "upstream_broken"


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for longer than the route allows."""

    status = 504
    code = "upstream_timeout"


class OutOfSockets(UpstreamError):
    """No socket could be opened: the files, ports or memory of the gateway itself are used up."""

    status = 503
    code = "overloaded"
    retry_after = 1

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=False)


class CircuitOpen(UpstreamError):
    """Every target failed too often of late, and the route says to refuse rather than to ask one again."""

    status = 503
    code = "circuit_open"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, reached=False)
        self.retry_after = retry_after


class Abstained(UpstreamError):
    """A candidate was not sure enough to answer; the request goes to the fallback, whole."""

    code = "abstained"


CODES = frozenset(
    error.code
    for error in (
        GatewayError,
        BadRequest,
        Forbidden,
        UnknownPath,
        UnknownPage,
        Refused,
        UnknownExchange,
        BodyTooLarge,
        TooManyRequests,
        Overloaded,
        StoreUnavailable,
        UpstreamError,
        UpstreamUnreachable,
        UpstreamBroken,
        UpstreamTimeout,
        OutOfSockets,
        CircuitOpen,
        Abstained,
    )
)
"""Every value that `x-unprompt-error` can have."""
