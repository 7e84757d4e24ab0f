"""What a refusal, an outage or a failed job means, said in one sentence."""

from __future__ import annotations

import email.utils
import re
import time

import openai

from gateway.errors import UnpromptError
from gateway.trainers.elsewhere.service import Job


class Failure(UnpromptError):
    """A fine-tune that cannot go on; the text is `class: sentence.` and goes to `FineTune.error`.

    Classes: backend_unavailable, quota, moderation, invalid_file, invalid_options, unauthorized, lost,
    rejected, training_failed, not_served.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {' '.join(reason.split()).rstrip('.')}.")


_CLASSES = (
    ("moderation", r"moderation|refusals|usage polic|safety|unsafe|harmful|blocked_by_policy"),
    ("quota", r"quota|billing|credit|hard limit|payment"),
    (
        "backend_unavailable",
        r"no longer (available|accessible|offer)|wind(ing)?[ -]down|new users|discontinued"
        r"|fine[- ]?tuning( \w+)? is (not|being)",
    ),
    (
        "invalid_file",
        r"(training|validation)[_ ]file|file[_ ]format|invalid_n_examples|invalid_file|invalid dataset",
    ),
)

_BY_STATUS = {
    401: "unauthorized",
    402: "quota",
    403: "unauthorized",
    404: "backend_unavailable",
    405: "backend_unavailable",
    410: "backend_unavailable",
    501: "backend_unavailable",
}


def failure_class(code: str | None, message: str, *, default: str) -> str:
    """The class of a refusal or of a failed job, from the words that the service uses."""
    words = f"{code or ''} {message}".lower()
    return next((kind for kind, pattern in _CLASSES if re.search(pattern, words)), default)


def verdict(error: Exception, *, polling: bool = False) -> Failure | None:
    """What a failed call means: a failure that is final, or None for one that is worth repeating.

    While polling, the job is already paid for: only the word that it does not exist ends it.
    """
    if not isinstance(error, openai.APIStatusError):
        return None
    status, code = error.status_code, error.code
    reason = f"the upstream answered {status}: {error.message}"
    if polling:
        return Failure("lost", f"the job is no longer known; {reason}") if status in (404, 410) else None
    if status == 429:
        kind = failure_class(code, error.message, default="")
        return Failure("quota", reason) if kind == "quota" else None
    if status in (408, 409, 425) or (status >= 500 and status != 501):
        return None
    default = _BY_STATUS.get(status, "rejected")
    if code in ("model_not_found", "model_not_available"):
        default = "rejected"  # a 404 for the base model is not a 404 for the API
    return Failure(failure_class(code, error.message, default=default), reason)


def job_failure(job: Job) -> Failure:
    """Why a job that has ended gave no model."""
    if not job.reason:
        reason = f"the job {job.id} ended in {job.status!r} without a model or a reason"
        return Failure("training_failed", reason)
    kind = failure_class(job.code, job.reason, default="training_failed")
    how = f"with {job.code}" if job.code else f"in {job.status!r}"
    return Failure(kind, f"the job {job.id} failed {how}: {job.reason}")


def retry_after(error: Exception) -> float:
    """Seconds that the service asks us to wait, an hour at most."""
    said = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return min(float(said), 3600.0)
    date = email.utils.parsedate_tz(said)
    return min(max(email.utils.mktime_tz(date) - time.time(), 0.0), 3600.0) if date else 0.0
