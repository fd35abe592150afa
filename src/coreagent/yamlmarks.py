"""YAML text to plain data that remembers where everything stood. Settings come in here before they are checked.

Built from the parser's events, not by a loader: nothing is constructed from tags, nesting and aliases are bounded
before they are followed, and a scalar stays the text that was written (`no` is "no", `12:30` is not 750); what type it
should have is for the settings to say. This file knows nothing of what the keys mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

SIZE_MAX = 1 << 20
DEPTH_MAX = 32
NODES_MAX = 20_000
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True)
class Mark:
    """A place in a file, both counted from 1."""

    line: int
    column: int


class BadYaml(Exception):
    """The text is no YAML that we take."""

    def __init__(self, message: str, mark: Mark, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark
        self.hint = hint


@dataclass
class Node:
    """One value and where it stands."""

    mark: Mark
    value: str | dict[str, Node] | list[Node] | None
    keys: dict[str, Mark] = field(default_factory=dict)
    """Of a mapping: where each key stands."""

    def plain(self) -> Any:
        """The data: strings, lists, dicts; what is null is left out of mappings, as if it had not been written."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items() if child.value is not None}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def find(self, loc: tuple[str | int, ...]) -> tuple[Mark, list[str]]:
        """Walk to `loc` as far as it exists; return where that is and the keys passed. Strange steps are skipped."""
        node, mark, passed = self, self.mark, list[str]()
        for step in loc:
            if isinstance(node.value, dict) and str(step) in node.value:
                mark = node.keys[str(step)]
                node = node.value[str(step)]
                passed.append(str(step))
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                mark = node.mark
                passed.append(str(step))
        return mark, passed


def decode(raw: bytes) -> str:
    """`raw` as text. Raises: BadYaml for what is too large or not UTF-8."""
    if len(raw) > SIZE_MAX:
        raise BadYaml(f"the file is larger than {SIZE_MAX} bytes", Mark(1, 1))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        raise BadYaml(
            f"byte 0x{raw[error.start]:02x} is not UTF-8",
            Mark(before.count(b"\n") + 1, column),
            "save the file as UTF-8",
        ) from None


def parse(text: str) -> Node:
    """The one document in `text`; an empty text is an empty mapping. Raises: BadYaml."""
    if len(text) > SIZE_MAX:
        raise BadYaml(f"the file is larger than {SIZE_MAX} characters", Mark(1, 1))
    builder = _Builder()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise _explain(error, text) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise BadYaml("a control character that YAML does not allow", mark, "remove it") from None
    return builder.document or Node(Mark(1, 1), {})


def _explain(error: yaml.MarkedYAMLError, text: str) -> BadYaml:
    at = error.problem_mark or error.context_mark
    mark = Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
    lines = text.splitlines()
    line = lines[mark.line - 1] if mark.line <= len(lines) else ""
    hint = "check the indentation and the colons around this line"
    if "\t" in line[: len(line) - len(line.lstrip())] or line[mark.column - 1 : mark.column] == "\t":
        hint = "YAML is indented with spaces: there is a tab in this line"
    return BadYaml(error.problem or error.context or "not valid YAML", mark, hint)


@dataclass
class _Open:
    """A collection whose end has not come yet."""

    node: Node
    anchor: str | None
    key: str | None = None
    key_mark: Mark | None = None


class _Builder:
    def __init__(self) -> None:
        self.document: Node | None = None
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._count = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1) if event.start_mark else Mark(1, 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise BadYaml("a second document starts here", mark, "keep one document in the file")
        elif isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, mark)
            null = event.implicit[0] and event.value in _NULLS
            self._scalar(Node(mark, None if null else event.value), event.anchor)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._check_tag(event.tag, mark)
            self._open(Node(mark, {} if isinstance(event, yaml.MappingStartEvent) else []), event.anchor)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self._stack.pop()
            if done.anchor:
                self._anchors[done.anchor] = (done.node, _size(done.node))
            self._put(done.node)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), mark)

    def _check_tag(self, tag: str | None, mark: Mark) -> None:
        if tag is not None and tag != "!":
            raise BadYaml(f"the tag {tag} is not allowed", mark, "remove the tag; settings are plain values")

    def _scalar(self, node: Node, anchor: str | None) -> None:
        self._grow(1, node.mark)
        if anchor:
            self._anchors[anchor] = (node, 1)
        top = self._stack[-1] if self._stack else None
        if top and isinstance(top.node.value, dict) and top.key is None:
            key = node.value if isinstance(node.value, str) else ""
            if key == "<<":
                raise BadYaml("merge keys (<<) are not supported", node.mark, "write the values out")
            if key in top.node.value:
                first = top.node.keys[key]
                raise BadYaml(
                    f"the key {key!r} stands twice",
                    node.mark,
                    f"the first one is in line {first.line}; keep one of them",
                )
            top.key, top.key_mark = key, node.mark
        else:
            self._put(node)

    def _open(self, node: Node, anchor: str | None) -> None:
        self._grow(1, node.mark)
        if self._stack and isinstance(self._stack[-1].node.value, dict) and self._stack[-1].key is None:
            raise BadYaml("a key must be plain text", node.mark, "did you mean to quote the value?")
        if len(self._stack) >= DEPTH_MAX:
            raise BadYaml(f"nested deeper than {DEPTH_MAX} levels", node.mark)
        self._stack.append(_Open(node, anchor))

    def _alias(self, anchor: str, mark: Mark) -> None:
        if anchor not in self._anchors:
            # Unknown, or used inside of itself: an anchor is only known once its value is complete.
            raise BadYaml(f"the alias *{anchor} has no value", mark, "write the value out")
        node, size = self._anchors[anchor]
        self._grow(size, mark)
        top = self._stack[-1] if self._stack else None
        if top and isinstance(top.node.value, dict) and top.key is None:
            raise BadYaml("an alias cannot be a key", mark, "write the key out")
        self._put(node)

    def _put(self, node: Node) -> None:
        if not self._stack:
            self.document = node
            return
        top = self._stack[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        elif isinstance(top.node.value, dict) and top.key is not None and top.key_mark is not None:
            top.node.value[top.key] = node
            top.node.keys[top.key] = top.key_mark
            top.key = None

    def _grow(self, by: int, mark: Mark) -> None:
        self._count += by
        if self._count > NODES_MAX:
            raise BadYaml(f"more than {NODES_MAX} values, aliases counted as often as they are used", mark)


def _size(node: Node) -> int:
    # Bounded: every value that is reachable here was counted against NODES_MAX when it was put in.
    if isinstance(node.value, dict):
        return 1 + sum(_size(child) for child in node.value.values())
    if isinstance(node.value, list):
        return 1 + sum(_size(child) for child in node.value)
    return 1
