"""llama.cpp's converter over many folders in one process, so that torch is loaded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llamacpp

_SCRIPT = """
import json, logging, sys
import llamacpp
for request in json.load(sys.stdin):
    llamacpp._convert(**request)
    logging.getLogger().handlers.clear()
"""


def run_all(rows: list[dict[str, Any]]) -> None:
    """`rows` are {source, out, outtype, split, model_name}; `out` may be a folder, which gets the default name."""
    requests = []
    for row in rows:
        arguments = [str(row["source"]), "--outfile", str(row["out"]), "--outtype", row.get("outtype") or "auto"]
        if row.get("split"):
            arguments += ["--split-max-size", row["split"]]
        if row.get("model_name"):
            arguments += ["--model-name", row["model_name"]]
        requests.append({"pre": "gpt-4o", "arguments": arguments})
    environment = {
        **os.environ,
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(requests).encode(),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise llamacpp.LlamaCppError(done.stderr.decode(errors="replace")[-4000:])
