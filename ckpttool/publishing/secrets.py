"""What looks like a secret: found in text that would be published, refused on the command line, kept out of messages.

Each kind has a form of its own, so that no words around it are needed and hashes, ids and vocabularies are not mistaken
for one. What was found is never shown, only its kind and place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckpttool.errors import CkptError, InputError, UsageError, raise_all

MOST_SHOWN = 5
"""Places of one file that are named."""


@dataclass(frozen=True)
class Secret:
    """What looks like a secret of this kind begins in this line, from 1, and at this byte."""

    line: int
    kind: str
    offset: int


@dataclass(frozen=True)
class Kind:
    """A kind of secret. One of the `marks` is in each, which is quicker to look for than the pattern."""

    name: str
    marks: tuple[bytes, ...]
    pattern: bytes

    def is_possible(self, data: bytes) -> bool:
        """Whether a mark is there at all."""
        return any(mark in data for mark in self.marks)


def _kind(name: str, marks: str, pattern: bytes) -> Kind:
    return Kind(name, tuple(m.encode() for m in marks.split()), pattern)


TOKENS = (
    _kind("a Hugging Face token", "hf_", rb"hf_(?:oauth_|jwt_|app_)?[A-Za-z0-9]{30,}"),
    _kind("a Hugging Face token", "api_org_", rb"api_org_[A-Za-z0-9]{30,}"),
)

KINDS = (
    *TOKENS,
    _kind("an AWS access key", "AKIA", rb"AKIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _kind("an AWS access key", "ASIA", rb"ASIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _kind(
        "an AWS secret key",
        "aws_secret_access_key AWS_SECRET_ACCESS_KEY",
        rb"(?i:aws_secret_access_key)[\\\"']{0,4}\s{0,9}[:=]\s{0,9}[\\\"']{0,4}[A-Za-z0-9/+]{40}",
    ),
    _kind("a GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[pousr]_[A-Za-z0-9]{36,}"),
    _kind("a GitHub token", "github_pat_", rb"github_pat_[A-Za-z0-9_]{50,}"),
    _kind("a GitLab token", "glpat-", rb"glpat-[A-Za-z0-9_-]{20,}"),
    _kind("a Google API key", "AIza", rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _kind("a Slack token", "xoxa- xoxb- xoxe- xoxp- xoxr- xoxs-", rb"xox[abeprs]-[A-Za-z0-9-]{20,}"),
    _kind("an OpenAI key", "T3BlbkFJ", rb"sk-[A-Za-z0-9_-]{8,100}T3BlbkFJ[A-Za-z0-9_-]{8,}"),
    _kind("an Anthropic key", "sk-ant-", rb"sk-ant-[a-z0-9]{1,20}-[A-Za-z0-9_-]{40,}"),
    _kind("an npm token", "npm_", rb"npm_[A-Za-z0-9]{36}"),
    _kind("a PyPI token", "pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50,}"),
    _kind("a signed web token", "eyJ", rb"eyJ[A-Za-z0-9_-]{10,500}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,}"),
    _kind("a private key", "PRIVATE", rb"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    _kind(
        "a password of .netrc",
        "password",
        rb"machine\s{1,20}\S{1,200}\s{1,20}login\s{1,20}\S{1,200}\s{1,20}password\s{1,20}\S+",
    ),
    _kind("a password in a URL", "://", rb"://[^/\s:@\"'<>{}$]{1,200}:[^/\s:@\"'<>{}$]{8,200}@"),
)
"""Each pattern begins with a text of its own, by which it is found quickly, and repeats nothing without end before its
last piece. A letter may stand before it, as the n of an escaped end of line does in JSON."""


def find(data: bytes) -> list[Secret]:
    """What looks like a secret in `data`, in its order."""
    found = [(m.start(), k.name) for k in KINDS if k.is_possible(data) for m in re.finditer(k.pattern, data)]
    out, line, seen = [], 1, 0
    for at, kind in sorted(found):
        line, seen = line + data.count(b"\n", seen, at), at
        out.append(Secret(line, kind, at))
    return out


def refuse(name: str, data: bytes, hint: str, *, is_text: bool = True) -> None:
    """InputError where `data` of the file `name` holds what looks like a secret: its lines, or bytes of a header."""
    raise_all(list(_refusals(name, find(data), hint, is_text)))


def _refusals(name: str, found: list[Secret], hint: str, is_text: bool) -> Iterator[CkptError]:
    for secret in found[:MOST_SHOWN]:
        if is_text:
            yield InputError(f"line {secret.line} holds what looks like {secret.kind}", file=name, hint=hint)
        else:
            what = f"its header holds what looks like {secret.kind}"
            yield InputError(what, file=name, offset=secret.offset, hint=hint)
    if len(found) > MOST_SHOWN:
        yield InputError(f"and {len(found) - MOST_SHOWN} more of them", file=name, hint=hint)


def refuse_arguments(argv: Iterable[str]) -> None:
    """UsageError where a Hugging Face token stands on the command line: there it is no secret any more."""
    if any(re.search(k.pattern, a.encode("utf-8", "surrogateescape")) for a in argv for k in TOKENS):
        hint = (
            "every user of this machine can see it there, and the shell keeps it: revoke it, "
            "then use hf auth login or HF_TOKEN"
        )
        raise UsageError("a token stands on the command line", hint=hint)


def redacted(text: str) -> str:
    """`text` with the name of its kind in place of whatever looks like a secret."""
    data = text.encode("utf-8", "surrogatepass")
    for kind in KINDS:
        if kind.is_possible(data):
            data = re.sub(kind.pattern, f"({kind.name})".encode(), data)
    return data.decode("utf-8", "surrogatepass")
