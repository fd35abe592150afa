"""JSON for the shim, without the json package: that one imports `re` and `enum`, 5 ms and a megabyte per attempt.

Ground floor. The work is done by the same C scanner the json package uses; only what surrounds it is left out.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would cost the shim more than all of its other imports
if TYPE_CHECKING:
    from typing import Any

try:
    import _json
except ImportError:  # a Python without the accelerator
    _json = None  # type: ignore[assignment]
    import json


class _Options:
    strict, parse_float, parse_int, parse_constant = False, float, int, float
    object_hook = object_pairs_hook = None
    memo: dict[str, str] = {}


def loads(raw: bytes) -> Any:
    """Parse one JSON value. Raises: ValueError, whatever is wrong with it."""
    text = raw.decode("utf-8").strip()
    if _json is None:
        return json.loads(text)
    try:
        value, end = _json.make_scanner(_Options)(text, 0)  # type: ignore[arg-type]
    except (StopIteration, RecursionError, SystemError) as error:
        # SystemError: up to 3.11 the scanner takes its exception from the json package, which is not there.
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("not JSON: something follows")
    return value


def dumps(value: Any) -> str:
    """One line of JSON from dicts, lists, strings, finite numbers, booleans and None."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value) if _json is None else str(_json.encode_basestring_ascii(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumps(str(name))}: {dumps(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return repr(value) if value - value == 0 else "null"
