"""What looks like a secret: found in text, refused on the command line, kept out of whatever is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import run

from ckpttool.errors import InputError, Problems, UsageError
from ckpttool.publishing import secrets

FIXTURES = Path(__file__).parents[1] / "fixtures"

X = "xY3"
SAMPLES = {
    "hf_" + X * 12: "a Hugging Face token",
    "hf_oauth_" + X * 12: "a Hugging Face token",
    "api_org_" + X * 12: "a Hugging Face token",
    "AKIA" + "IOSFODNN7EXAMPLE": "an AWS access key",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY": "an AWS secret key",
    "ghp_" + X * 12: "a GitHub token",
    "github_pat_" + "11ABCDEFG0_" + X * 20: "a GitHub token",
    "glpat-" + X * 7: "a GitLab token",
    "AIza" + "S" * 35: "a Google API key",
    "xoxb-" + "123456789012-" + X * 8: "a Slack token",
    "sk-proj-" + X * 5 + "T3BlbkFJ" + X * 7: "an OpenAI key",
    "sk-ant-" + "api03-" + X * 20: "an Anthropic key",
    "npm_" + X * 12: "an npm token",
    "pypi-AgE" + X * 20: "a PyPI token",
    "eyJ" + X * 5 + "." + "eyJ" + X * 5 + "." + X * 8: "a signed web token",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----": "a private key",
    "-----BEGIN " + "PRIVATE KEY-----": "a private key",
    "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----": "a private key",
    "machine huggingface.co login ada\n  password " + X * 4: "a password of .netrc",
    "https://ada:" + X * 4 + "@example.org/m": "a password in a URL",
}
"""Made here, so that no scan of this repository takes them for real ones."""

TOKEN = next(iter(SAMPLES))

HARMLESS = (
    "hf_hub_download(repo_id, filename)",
    "hf_" + X * 9,
    "AKIA is a prefix",
    "AKIA" + "IOSFODNN7EXAMPLEx",
    "aws_secret_access_key is read from the environment",
    "a blog about task-risk-and-mitigation-strategies-for-large-language-models",
    "https://example.org:8080/a@b",
    "https://ada:{password}@example.org",
    "-----BEGIN CERTIFICATE-----",
    "machine learning with a password",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "eyJhbGciOiJIUzI1NiJ9",
)


FORMS = {"alone": "{}", "quoted": 'x = "{}"', "escaped": '{{"a": "n\\n{}\\n"}}'}


@pytest.mark.parametrize(("text", "kind"), SAMPLES.items(), ids=[k[:12] for k in SAMPLES])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_kind_is_found(text: str, kind: str, form: str) -> None:
    before = "one\ntwo\n"
    found = secrets.find(f"{before}{form.format(text)}\nfour".encode())
    assert [(s.line, s.kind) for s in found] == [(3, kind)]
    assert found[0].offset >= len(before)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_resembles_one_is_not(text: str) -> None:
    assert secrets.find(text.encode()) == []
    assert secrets.redacted(text) == text


def test_no_fixture_holds_one() -> None:
    """Vocabularies, merges, templates, weights: none of their bytes are taken for a secret."""
    files = [p for p in FIXTURES.rglob("*") if p.is_file()]
    assert len(files) > 40
    assert [p for p in files if secrets.find(p.read_bytes())] == []


@pytest.mark.parametrize("text", SAMPLES, ids=[k[:12] for k in SAMPLES])
def test_a_refusal_names_lines_and_shows_nothing(text: str) -> None:
    with pytest.raises(InputError) as error:
        secrets.refuse("README.md", f"fine\n{text}\n".encode(), "revoke it")
    assert str(error.value).startswith("README.md: line 2 holds what looks like ")
    assert str(error.value).endswith("; revoke it")
    assert text.split()[-1] not in str(error.value)
    secrets.refuse("README.md", b"fine\n", "revoke it")


def test_many_are_counted() -> None:
    with pytest.raises(Problems) as error:
        secrets.refuse("x", f"{TOKEN}\n".encode() * 20, "h")
    assert len(error.value.problems) == secrets.MOST_SHOWN + 1
    assert "15 more" in str(error.value.problems[-1])


def test_in_a_header_the_byte_is_named() -> None:
    with pytest.raises(InputError, match="at byte 7: its header holds"):
        secrets.refuse("x.gguf", b"\0" * 7 + TOKEN.encode(), "h", is_text=False)


def test_redaction_keeps_the_rest() -> None:
    text = "cannot open \udcff https://x/" + TOKEN + "?a=1, nor the second " + TOKEN
    said = secrets.redacted(text)
    assert said == text.replace(TOKEN, "(a Hugging Face token)")
    assert secrets.redacted(said) == said


def test_arguments() -> None:
    secrets.refuse_arguments(["convert", "a", "hf_transfer", "\udcff"])
    with pytest.raises(UsageError, match="on the command line") as error:
        secrets.refuse_arguments(["upload", "x", f"--token={TOKEN}"])
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    "argv",
    [("upload", "x", "a/b", TOKEN), ("inspect", f"--token={TOKEN}"), ("--json", TOKEN), ("verify", "--json", TOKEN)],
    ids=["argument", "option", "command", "json"],
)
def test_a_token_on_the_command_line_is_refused_and_not_repeated(argv: tuple[str, ...]) -> None:
    result = run(*argv)
    assert result.code == 2
    assert TOKEN not in result.out + result.err
    assert "on the command line" in result.out + result.err


def test_no_message_repeats_a_secret(tmp_path: Path) -> None:
    """Whatever an error quotes: a name, a value from a file, a traceback."""
    secret = "ghp_" + X * 12
    for argv in ((), ("--json",), ("--debug",)):
        result = run("inspect", tmp_path / secret, *argv)
        assert result.code == 3
        assert secret not in result.out + result.err
        assert "(a GitHub token)" in result.out + result.err
    assert json.loads(run("inspect", tmp_path / secret, "--json").out)["errors"][0]["file"].endswith("(a GitHub token)")
