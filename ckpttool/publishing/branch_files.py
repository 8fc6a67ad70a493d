"""What a file of the branch holds: read at the commit that was found at the start, and held against the Hub's list."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ckpttool.containers.answers import Again
from ckpttool.publishing.access import Access
from ckpttool.publishing.hub_calls import Calls
from ckpttool.publishing.sending import Meant, git_sha1

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def content(access: Access, calls: Calls, name: str) -> bytes:
    """All of the file `name`, which is there. NetworkError where it cannot be read, or is not what is listed."""
    return calls.ask(lambda api: _read(api, access, calls, name), name)


def _read(api: HfApi, access: Access, calls: Calls, name: str) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    target = calls.target
    url = hf_hub_url(target.id, name, revision=access.head, endpoint=target.hub)
    headers = build_hf_headers(library_name=api.library_name, library_version=api.library_version)
    response = get_session().get(url, headers=headers)
    hf_raise_for_status(response)
    data = bytes(response.content)
    if not Meant(len(data), hashlib.sha256(data).hexdigest(), git_sha1(data)).is_in(access.files[name]):
        raise Again("is not what the Hub lists", tries=2)
    return data
