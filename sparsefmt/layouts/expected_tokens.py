"""How many tokens at once a process will multiply by, as far as it knows: `layout="auto"` takes that into account."""

from __future__ import annotations

import os
from typing import Literal

ENVIRONMENT_VARIABLE = "SPARSEFMT_TOKENS"

FEW_TOKENS = 6
"""Up to so many tokens, a product is like one with a single token: bytes count most."""

Use = Literal["decode", "prompts"]

_expected: Use | None = None
_is_set = False


def set_expected_tokens(tokens: Use | int | None) -> None:
    """Say how many tokens at once will be multiplied by weights that are compressed or loaded from now on.

    By default, `layout="auto"` suits any number: none is slower than dense, and one token and 128 are as fast as
    possible together. Who knows more gets more. Weights that exist keep their layout; results have the same bits.

    Args:
        tokens: "decode", or a number up to 6, for one token at a time, where bytes count: more weights are `bitmask`.
            "prompts", or a larger number, for many at once, where few multiplications count: more are `permuted`. None
            for any number.

    Raises:
        ValueError: something else.

    Example:
        >>> sparsefmt.set_expected_tokens("decode")
    """
    global _expected, _is_set
    _expected, _is_set = _use(tokens, "tokens"), True


def expected_use() -> Use | None:
    """What `set_expected_tokens` or SPARSEFMT_TOKENS says; None for any number.

    Raises:
        ValueError: SPARSEFMT_TOKENS is neither "decode" nor "prompts" nor a number above 0.
    """
    if _is_set:
        return _expected
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    return _use(int(setting) if setting.isdecimal() else setting, ENVIRONMENT_VARIABLE) if setting else None


def _use(tokens: object, what: str) -> Use | None:
    if tokens is None or tokens == "decode" or tokens == "prompts":
        return tokens
    if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
        return "decode" if tokens <= FEW_TOKENS else "prompts"
    raise ValueError(f"{what} must be 'decode', 'prompts' or a number of tokens above 0, not {tokens!r}")
