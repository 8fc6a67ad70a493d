"""What is asserted of every death, however a conversion died."""

from __future__ import annotations

from typing import Any

from prepared import Prepared


def check_state(made: Prepared, found: dict[str, Any]) -> None:
    """The old target or the new one, and what `verify` says of it. A GGUF's receipt comes just before it, and until
    then says that it is not the file that lies there."""
    assert found["finals"] in (made.old, made.new), found
    if found["finals"] == made.new:
        assert found["verdict"] == "ok", found
    elif found["finals"]:
        assert found["verdict"] == "ok" or made.request["target"].endswith(".gguf"), found
    else:
        assert found["verdict"] != "ok", found


def check_end(made: Prepared, row: dict[str, Any]) -> None:
    """What the same command came to: the new target and nothing else."""
    assert row["again"]["status"] == 0, row
    assert row["tree"] == made.new, row
    assert row["end"] == "ok", row
