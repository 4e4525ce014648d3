"""URLs: which places are URLs and which are paths, and what of a URL may be shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(::|://)")
"""How a URL begins. A single letter is a drive."""

_LOCAL = ("file://", "local://")

_SECRET = re.compile(r"(//)[^/@\s]*@|(?<=\?)[^\s'\"]+")
"""What may be a secret in a text with URLs: a user's name and password, and a query, which may be a signature."""

_SHORTEST_SECRET = 4
"""Characters; a shorter one would be found in other words."""


class Url(NamedTuple):
    """A URL, and with which what is behind it is asked for: what fsspec's file system of it takes."""

    url: str
    options: Mapping[str, Any]


def as_place(place: Any, options: Mapping[str, Any] | None = None) -> Any:
    """What a user gives as a place: a Url, or a path or file object as it is.

    Raises:
        ValueError: there are options, and it is not a URL.
    """
    if isinstance(place, Url):
        return place
    if is_url(place):
        return Url(place, dict(options or {}))
    if options:
        raise ValueError(f"storage_options are for URLs such as s3://bucket/model.sparsefmt, not for {place!r}")
    return _local_path(place)


def is_url(place: Any) -> bool:
    """Whether this is a URL of something that is not a file of this machine's file system."""
    return isinstance(place, str) and _URL.match(place) is not None and not place.startswith(_LOCAL)


def _local_path(place: Any) -> Any:
    """The path of a URL that names a file of this machine's file system; anything else as it is."""
    for scheme in _LOCAL:
        if isinstance(place, str) and place.startswith(scheme):
            return place.removeprefix(scheme)
    return place


def shown(place: str) -> str:
    """A URL for messages: without a user's name and password, and without a query, which may be a signature."""
    if not is_url(place):
        return place
    outer, chained, inner = place.rpartition("::")
    parts = urlsplit(inner)
    host = parts.netloc.rpartition("@")[2]
    return outer + chained + urlunsplit((parts.scheme, host, parts.path, "", ""))


def _texts_in(options: Any) -> Iterator[str]:
    """All texts in options, however deep."""
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        for value in options.values():
            yield from _texts_in(value)


def without_secrets(text: str, place: Url) -> str:
    """A text of others about what is behind a URL, without what may be secret of that, of options or of other URLs."""
    parts = urlsplit(place.url.rpartition("::")[2])
    secrets = [parts.netloc.rpartition("@")[0], *parts.netloc.rpartition("@")[0].split(":"), parts.query]
    secrets += _texts_in(place.options)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "...")
    return _SECRET.sub(lambda found: found.group(1) or "", text)
