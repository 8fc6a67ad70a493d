"""Validations that may go without anybody noticing, and why: by module and by the name `validations.py` gives them."""

from __future__ import annotations

_NO_CONFIG = "what has no config.json has no sizes, and the planner refuses it before it looks at side files"

EQUIVALENT: dict[str, dict[str, str]] = {
    "sidecars.py": {
        "canonical_companions: check: path is None or source.config is None": _NO_CONFIG,
        "canonical_companions: part: path is None": _NO_CONFIG,
        "canonical_companions: part: source.config is None": _NO_CONFIG,
    },
}
