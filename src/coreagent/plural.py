"""How many there are, in words: `1 file`, `2 files`. Everything that a person reads comes in with its counts."""


def plural(count: int, noun: str, nouns: str = "", *, shown: str = "") -> str:
    """`1 file`, `1,200 files`; `nouns` where an s does not do it (or a verb follows), `shown` for other digits."""
    return f"{shown or format(count, ',')} {noun if count == 1 else nouns or noun + 's'}"
