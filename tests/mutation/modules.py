"""Which modules are held to it, and which test files hold them: those that take seconds, not minutes."""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """Modules, by their paths in the package; test files, by theirs in `tests`; and those of them that run the package
    in processes of their own, where nobody sees which lines they reach."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    apart: tuple[str, ...]


GROUPS = {
    "parsers": Group(
        (
            "containers/safetensors.py", "containers/safetensors_table.py", "containers/gguf.py",
            "containers/gguf_reader.py", "containers/gguf_values.py", "containers/index.py", "containers/shards.py",
            "containers/strict_json.py", "containers/source.py", "containers/layout.py", "containers/foreign.py",
            "containers/limits.py",
        ),
        (
            "test_safetensors.py", "test_gguf.py", "test_strict_json.py", "test_shards.py", "test_source.py",
            "contracts/test_containers.py", "hostile/test_headers.py", "hostile/test_limits.py",
            "test_changing_sources.py",
        ),
        ("hostile/test_limits.py",),
    ),
    "execute": Group(
        (
            "journal.py", "commit.py", "preflight.py", "workplace.py", "settling.py", "execute.py", "staged.py",
            "readback.py", "slabwork.py", "sidecars.py", "steps.py", "threads.py",
        ),
        (
            "test_journal.py", "test_commit.py", "test_preflight.py", "test_workplace.py", "test_steps.py",
            "test_threads.py", "test_target.py", "test_staging.py", "test_execute.py", "test_leftovers.py",
            "test_companions.py", "test_sidecars.py", "test_readback.py", "test_changing_sources.py",
            "test_convert_hf.py", "test_convert_gguf.py", "test_devices.py", "contracts/test_dialects.py",
            "hostile/test_bad_checkpoints.py",
        ),
        ("test_execute.py",),
    ),
}  # fmt: skip
