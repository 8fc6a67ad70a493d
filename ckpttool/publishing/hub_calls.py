"""Calls of huggingface_hub that publish: tried again where that may help, counted, and their refusals in words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ckpttool.containers import answers, patience
from ckpttool.containers.answers import Again
from ckpttool.containers.exchange import session
from ckpttool.errors import CkptError, InputError, NetworkError, os_error
from ckpttool.publishing import refusals
from ckpttool.publishing.door import Passage, through
from ckpttool.publishing.report import Traffic
from ckpttool.publishing.repos import RepoTarget

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")


class Calls:
    """Calls to the Hub of one target, and what has travelled. Threads may share it."""

    def __init__(self, target: RepoTarget) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """What has travelled so far."""
        with self._lock:
            return self._traffic

    def count(self, *, down: int = 0, up: int = 0, requests: int = 0) -> None:
        """Add to what has travelled."""
        with self._lock:
            t = self._traffic
            self._traffic = Traffic(t.down_nbytes + down, t.up_nbytes + up, t.requests + requests)

    def ask(
        self,
        call: Callable[[HfApi], T],
        label: str | None = None,
        *,
        nbytes: int = 0,
        in_parts: bool = False,
        sent: Callable[[int], None] = lambda nbytes: None,
    ) -> T:
        """What `call` returns, tried again where it may succeed then.

        `label` names it in errors, `nbytes` are sent with it, and `sent` hears of each of their pieces. `in_parts`:
        content goes up in parts, each of which the library may put again.

        Raises:
            NetworkError: the Hub refuses (`refusals.Refused`), breaks off too often, or is too slow.
            LocalIOError: what is sent cannot be read.
        """
        label = label or str(self.target)

        def once(gone: threading.Event) -> T:
            library, client = session()
            passage = Passage(self.target.hub, library, label, self, gone, in_parts, sent)
            with through(passage, client), answers.translated(library, label), _in_words(label, self.target):
                return call(self._api())

        return patience.retried(once, label, nbytes)

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        from ckpttool import __version__

        return HfApi(endpoint=self.target.hub, library_name="ckpttool", library_version=__version__)


_bars = threading.Lock()
_quiet = 0
_drew = False


@contextmanager
def quiet() -> Iterator[None]:
    """The library draws no bars of its own meanwhile, in any thread; afterwards as it did before."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    global _quiet, _drew
    with _bars:
        if _quiet == 0 and (_drew := not are_progress_bars_disabled()):
            disable_progress_bars()
        _quiet += 1
    try:
        yield
    finally:
        with _bars:
            _quiet -= 1
            if _quiet == 0 and _drew:
                enable_progress_bars()


_BAD_CARD = "Invalid metadata in README.md"


@contextmanager
def _in_words(label: str, target: RepoTarget) -> Iterator[None]:
    """The library's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (CkptError, Again):
        raise
    except HfHubHTTPError as error:
        raise refusals.refused(error.response, label, target) from error
    except RuntimeError as error:  # an upload's failure, which is its cause
        cause = error.__cause__
        if isinstance(cause, Again | CkptError):
            raise cause from error
        if isinstance(cause, HfHubHTTPError):
            raise refusals.refused(cause.response, label, target) from error
        if isinstance(cause, OSError):
            raise _of_system(cause, label) from error
        what = f"the upload broke off: {refusals.redacted(str(cause or error))}"
        raise Again(what, tries=3, hint=refusals.LATER) from error
    except OSError as error:
        raise _of_system(error, label) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if str(error).startswith(_BAD_CARD):
            raise InputError(refusals.redacted(str(error)), file="README.md", hint="mend its front matter") from error
        what = f"the Hub's answer is not what its API promises: {refusals.redacted(f'{type(error).__name__}: {error}')}"
        raise NetworkError(what, file=label, hint="is HF_ENDPOINT a Hub?") from error


def _of_system(error: OSError, label: str) -> Exception:
    """What the system refused; hf_xet's own errors are of the same kinds, without a number."""
    if error.errno is not None:
        return os_error(error)
    what = refusals.redacted(str(error)) or type(error).__name__
    if isinstance(error, PermissionError | FileNotFoundError):
        return NetworkError(f"the upload was refused: {what}", file=label, hint=refusals.LATER)
    return Again(f"the upload broke off: {what}", tries=3, hint=refusals.LATER)
