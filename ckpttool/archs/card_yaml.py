"""YAML as the Hub reads a model card's front matter: `no` is Norwegian, and only `true` and `false` are booleans.

PyYAML follows YAML 1.1, which takes yes, no, on and off for booleans as well; the Hub follows 1.2 (10.3.2 of
https://yaml.org/spec/1.2.2).
"""

from __future__ import annotations

from functools import cache
from typing import Any

BOOLEAN = "tag:yaml.org,2002:bool"


def load(text: str) -> Any:
    """What `text` says. Raises yaml.YAMLError, and ValueError or RecursionError for what no YAML library bears."""
    import yaml  # type: ignore[import-untyped]

    return yaml.load(text, _loader())


@cache
def _loader() -> Any:
    """PyYAML's safe loader with the booleans of 1.2."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != BOOLEAN]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(BOOLEAN, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader
