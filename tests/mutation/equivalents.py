"""Validations that may go without anybody noticing, and why: by module and by the name `validations.py` gives them."""

from __future__ import annotations

EQUIVALENT: dict[str, dict[str, str]] = {}
