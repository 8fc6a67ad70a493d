"""What tests share. Here so that pytest puts this folder on sys.path: tests in the folders below import `builders`.

Triton decides at its import whether it interprets, and other libraries under test import it too: so it is told first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell's background jobs ignore SIGINT, and nohup's SIGHUP; commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch in one thread: other tests run beside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote ends are asked again without pauses."""
    from ckpttool.containers import patience

    monkeypatch.setattr(patience, "PATIENCE", patience.Patience(pauses=(0, 0, 0, 0)))


@pytest.fixture(scope="module")
def tab() -> Iterator[chromium.Browser]:
    """One browser for a module's tests. In CI there must be one; .ci/run installs it."""
    if chromium.executable() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium here (apt-get install chromium); CI has one")
    with chromium.browser() as browser:
        browser.window(1300, 900)
        browser.media()
        yield browser
