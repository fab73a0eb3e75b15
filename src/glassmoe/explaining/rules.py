"""A small language in which an explanation can be said in words and applied to the letter.

A rule names tokens: by what they spell, how they begin or end, what kind of word they are, what stands before them,
where in the row they are, or where their document came from. `words` says it, `parse` reads it back, `hits` applies it.
The grammar, with TOKEN for what one token is called (token, character, move):

    rule  = "fires on " what [ " after " what ]
          | "fires at the end of " TEXT              the text up to and including the token ends so
          | "fires on the first " N " TOKENs of a row" | "fires after the first " N " TOKENs of a row"
          | "fires in documents of " TEXT            the source of the document, as the prepared text has it
    what  = "the TOKEN " TEXT | "one of the TOKENs " TEXT ", " TEXT ...
          | "a TOKEN that begins with " TEXT | "a TOKEN that ends in " TEXT
          | one of CLASSES, such as "a capitalised word"
          | "any TOKEN"
    TEXT  = a JSON string

A first token of a window has nothing before it that a rule could see.

Legend: E windows, L tokens of a window, V different pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .windows import Bool, Windows


def _word(test: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda piece: test(piece.strip())


CLASSES: dict[str, Callable[[str], bool]] = {
    "a number": _word(lambda word: word.isdecimal()),
    "a capital letter": _word(lambda word: len(word) == 1 and word.isupper()),
    "a small letter": _word(lambda word: len(word) == 1 and word.islower()),
    "a capitalised word": _word(
        lambda word: len(word) > 1 and word.isalpha() and word[0].isupper() and not word[1:].isupper()
    ),
    "a word in capitals": _word(lambda word: len(word) > 1 and word.isalpha() and word.isupper()),
    "a word in small letters": _word(lambda word: len(word) > 1 and word.isalpha() and word.islower()),
    "the end of a sentence": _word(lambda word: word in {".", "!", "?"}),
    "punctuation": _word(lambda word: bool(word) and not any(letter.isalnum() for letter in word)),
    "white space": lambda piece: bool(piece) and piece.isspace(),
    "a line break": lambda piece: "\n" in piece,
    "a word with a space before it": lambda piece: len(piece) > 1 and piece[0] == " " and piece[1].isalpha(),
    "a piece inside a word": lambda piece: len(piece) > 1 and piece[0].isalpha(),
    "something outside ASCII": lambda piece: not piece.isascii(),
}
"""Kinds of tokens, in words, by what they spell."""

How = Literal["is", "begins", "ends", "class", "any"]


@dataclass(frozen=True)
class What:
    """Which tokens are meant: those that are one of `texts`, begin with or end in `texts[0]` (and are longer, spaces
    around them apart), are of the class `texts[0]`, or any."""

    how: How = "any"
    texts: tuple[str, ...] = ()

    def holds(self, piece: str) -> bool:
        """Whether a token that spells this is meant."""
        if self.how == "is":
            return piece in self.texts
        if self.how == "class":
            return CLASSES[self.texts[0]](piece)
        if self.how == "any":
            return True
        word, affix = piece.strip(), self.texts[0]
        return len(word) > len(affix) and (word.startswith(affix) if self.how == "begins" else word.endswith(affix))

    def words(self, token: str) -> str:
        """In words; `token`: what one token is called."""
        if self.how == "is":
            quoted = ", ".join(map(_quoted, self.texts))
            return f"the {token} {quoted}" if len(self.texts) == 1 else f"one of the {token}s {quoted}"
        if self.how == "class":
            return self.texts[0]
        if self.how == "any":
            return f"any {token}"
        return f"a {token} that {'begins with' if self.how == 'begins' else 'ends in'} {_quoted(self.texts[0])}"


@dataclass(frozen=True)
class Rule:
    """`what` (after `before`), or the end of the text `end`, or a place in the row: the first `first` tokens, or with
    a negative number those after so many; or all tokens of documents of the source `source`."""

    what: What = What()
    before: What | None = None
    end: str | None = None
    first: int | None = None
    source: str | None = None

    def hits(self, windows: Windows) -> Bool:
        """(E, L): the tokens on which it says that the feature fires. A window lies within one document; where sources
        are not known none is of a source."""
        if self.source is not None:
            return np.repeat(windows.of_source(self.source)[:, None], windows.piece_EL.shape[1], axis=1)
        if self.first is not None:
            early_EL: Bool = windows.place_EL < abs(self.first)
            return early_EL if self.first > 0 else ~early_EL
        if self.end is not None:
            return np.array([_ends(windows.tokens(e), self.end) for e in range(len(windows))]).reshape(
                windows.piece_EL.shape
            )
        found_EL = windows.where(self.what)
        if self.before is not None:
            found_EL[:, 1:] &= windows.where(self.before)[:, :-1]
            found_EL[:, :1] = False
        return found_EL

    def words(self, token: str = "token") -> str:
        """The explanation that says it."""
        if self.source is not None:
            return f"fires in documents of {_quoted(self.source)}"
        if self.first is not None:
            return f"fires {'on' if self.first > 0 else 'after'} the first {abs(self.first)} {token}s of a row"
        if self.end is not None:
            return f"fires at the end of {_quoted(self.end)}"
        return f"fires on {self.what.words(token)}" + (f" after {self.before.words(token)}" if self.before else "")


def _ends(tokens: list[str], end: str) -> list[bool]:
    text, found = "", []
    for token in tokens:
        text += token
        found.append(bool(token) and text.endswith(end))
    return found


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_TEXT = r'"(?:[^"\\]|\\.)*"'
_TOKEN = "(?:token|character|move)"
_WHAT = (
    rf"(?:the {_TOKEN} {_TEXT}|one of the {_TOKEN}s {_TEXT}(?:, {_TEXT})*"
    rf"|an? {_TOKEN} that (?:begins with|ends in) {_TEXT}|any {_TOKEN}|{'|'.join(map(re.escape, CLASSES))})"
)
_ON = re.compile(rf"fires on ({_WHAT})(?: after ({_WHAT}))?")
_END = re.compile(rf"fires at the end of ({_TEXT})")
_SOURCE = re.compile(rf"fires in documents of ({_TEXT})")
_FIRST = re.compile(rf"fires (on|after) the first ([1-9]\d{{0,8}}) {_TOKEN}s of a row")


def parse(explanation: str) -> Rule | None:
    """The rule that an explanation says, None where it says none."""
    text = explanation.strip()
    try:
        if found := _FIRST.fullmatch(text):
            return Rule(first=int(found[2]) * (1 if found[1] == "on" else -1))
        if found := _END.fullmatch(text):
            return Rule(end=_unquoted(found[1]))
        if found := _SOURCE.fullmatch(text):
            return Rule(source=_unquoted(found[1]))
        if found := _ON.fullmatch(text):
            return Rule(_what(found[1]), _what(found[2]) if found[2] else None)
    except ValueError:  # a string that JSON does not know
        return None
    return None


def _what(words: str) -> What:
    if words in CLASSES:
        return What("class", (words,))
    texts = tuple(_unquoted(each) for each in re.findall(_TEXT, words))
    if not texts:
        return What()
    if " that begins with " in words.partition('"')[0]:
        return What("begins", texts)
    return What("ends" if " that ends in " in words.partition('"')[0] else "is", texts)


def _unquoted(text: str) -> str:
    read: Any = json.loads(text)
    return str(read)
