"""What differs between the supported releases of Transformers, in one place."""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

# The cache's name in model outputs and inside generate(): ``past_key_values`` up to Transformers 5.23, ``cache`` from
# 5.24 on. Arguments of this package have both names with every release.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """The cache that the caller passed under one of its two names, or None.

    Raises:
        ValueError: Two different ones were passed.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError(
            "past_key_values, cache: expected one cache, got two different ones; they are two names of one argument."
        )
    return past_key_values if cache is None else cache


def rename_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with the cache, if there is one, under the name that the installed release knows."""
    cache = one_cache(arguments.get("past_key_values"), arguments.get("cache"))
    rest = {name: value for name, value in arguments.items() if name not in ("past_key_values", "cache")}
    return rest if cache is None else {**rest, CACHE_NAME: cache}
