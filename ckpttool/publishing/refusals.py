"""What the Hub says when it refuses to take something, and what the user can do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from ckpttool.containers import answers
from ckpttool.containers.stores import without_secrets
from ckpttool.errors import NetworkError
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    import httpx2

LATER: Final = "run the command again later; what is up is not put again"
SAID_LIMIT: Final = 300
"""Characters of what a server says that are shown."""

_TOKEN: Final = re.compile(
    r"(?:hf_|hf_oauth_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|xox[a-z]-|AKIA|ASIA|eyJ)[A-Za-z0-9_.\-]{8,}"
)
_QUERY: Final = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*")
_PASSWORD: Final = re.compile(r"(https?://)[^\s/@]*@")


class Refused(NetworkError):
    """The Hub answered with an error that another try would not change."""

    def __init__(self, message: str, *, status: int, file: str, hint: str) -> None:
        super().__init__(message, file=file, hint=hint)
        self.status = status


def redacted(text: str) -> str:
    """`text` in one line without tokens, passwords and the queries of URLs, which hold signatures."""
    for pattern, put in ((_PASSWORD, r"\1"), (_QUERY, r"\1"), (_TOKEN, "[a token]")):
        text = pattern.sub(put, text)
    return " ".join(text.split())[:SAID_LIMIT]


def said(response: httpx2.Response) -> str:
    """The server's own words, redacted; "" where it has none, or a page."""
    words = response.headers.get("x-error-message", "")
    if not words:
        try:
            body = json.loads(response.content)
            words = body.get("error") or body.get("message") or ""
        except (ValueError, AttributeError):
            return ""
    return redacted(words) if isinstance(words, str) else ""


def summary(response: httpx2.Response) -> str:
    """What the server answers: the status, and its words."""
    words = said(response)
    return f"the server answers {response.status_code}{f': {words}' if words else ''}"


def refused(response: httpx2.Response, label: str, target: RepoTarget) -> Exception:
    """The error of an answer: `Again` where it may pass, else `Refused`."""
    status = response.status_code
    if status in answers.TRANSIENT:
        return answers.Again(summary(response), answers.wait(status, response.headers), hint=LATER)
    words = said(response)
    if status == 400 and "secret" in words.lower():
        what = f"the Hub found a valid secret in what was sent: {words}"
        hint = "take it out of the file, and revoke it where it was made"
        return Refused(what, status=status, file=label, hint=hint)
    if response.headers.get("x-error-code") == "GatedRepo":
        hint = f"accept its terms at {target.url}"
        return Refused("the repo is gated", status=status, file=label, hint=hint)
    return Refused(summary(response), status=status, file=label, hint=_hint(status, target))


def _hint(status: int, target: RepoTarget) -> str:
    hub = without_secrets(target.hub)
    tokens = f"{hub}/settings/tokens"
    return {
        400: "what it says must be mended first",
        401: f"is your token still valid? {answers.LOG_IN}",
        402: f"its storage or plan is exhausted: {hub}/settings/billing",
        403: f"your token needs write access to {target.id}: {tokens}",
        404: f"check the name; may your token see {target.url}?",
        409: "somebody else changes the repo; run the command again",
        412: "somebody else changed the branch; run the command again",
        413: "the Hub takes no files or commits of this size",
    }.get(status, "look at https://status.huggingface.co, and try again later")
