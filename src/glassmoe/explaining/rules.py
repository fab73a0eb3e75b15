"""A small language of explanations that are written in words and can be applied literally.

A rule selects tokens by what they spell, how they begin or end, their kind of word, the token before them, the kind of
text that they are part of, their position in the row, or the source of their document. `words` writes a rule, `parse`
reads it back, `hits` applies it. The grammar, where TOKEN is what one token is called (token, character, move):

    rule  = "fires on " what [ " after " what ]
          | "fires at the end of " TEXT              the text up to and including the token ends so
          | "fires on the first " N " TOKENs of a row" | "fires after the first " N " TOKENs of a row"
          | "fires within " one of SPANS (spans.py), such as "a date"
          | "fires in documents of " TEXT            the source of the document, as the prepared text has it
    what  = "the TOKEN " TEXT | "one of the TOKENs " TEXT ", " TEXT ...
          | "a TOKEN that begins with " TEXT | "a TOKEN that ends in " TEXT
          | one of CLASSES, such as "a capitalised word"
          | "any TOKEN"
    TEXT  = a JSON string

The first token of a window has no token before it that a rule could see.

Legend: E windows, L tokens of a window, V distinct pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .spans import SPANS, within
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
"""Kinds of tokens, in words -> whether a piece is of that kind."""

PatternKind = Literal["is", "begins", "ends", "class", "any"]


@dataclass(frozen=True)
class TokenPattern:
    """A set of tokens, by what they spell."""

    kind: PatternKind = "any"
    """`is`: one of `texts`. `begins`, `ends`: longer than `texts[0]`, and begins or ends with it, spaces around the
    token apart. `class`: of the class `texts[0]`. `any`: every token."""
    texts: tuple[str, ...] = ()
    """See `kind`."""

    def holds(self, piece: str) -> bool:
        """Whether a token that spells this is in the set."""
        if self.kind == "is":
            return piece in self.texts
        if self.kind == "class":
            return CLASSES[self.texts[0]](piece)
        if self.kind == "any":
            return True
        word, affix = piece.strip(), self.texts[0]
        return len(word) > len(affix) and (word.startswith(affix) if self.kind == "begins" else word.endswith(affix))

    def words(self, token: str) -> str:
        """The set in words. `token`: what one token is called."""
        if self.kind == "is":
            quoted = ", ".join(map(_quoted, self.texts))
            return f"the {token} {quoted}" if len(self.texts) == 1 else f"one of the {token}s {quoted}"
        if self.kind == "class":
            return self.texts[0]
        if self.kind == "any":
            return f"any {token}"
        return f"a {token} that {'begins with' if self.kind == 'begins' else 'ends in'} {_quoted(self.texts[0])}"


@dataclass(frozen=True)
class Rule:
    """Tokens on which a feature fires. Exactly one of `what` (with `before`), `end`, `first`, `source` and `within`
    decides."""

    what: TokenPattern = TokenPattern()
    """The tokens."""
    before: TokenPattern | None = None
    """Tokens of which one stands before."""
    end: str | None = None
    """The text up to and including the token ends with this."""
    first: int | None = None
    """The first so many tokens of a row; if negative, the tokens after so many."""
    source: str | None = None
    """All tokens of documents of this source."""
    within: str | None = None
    """The tokens that are part of a text of this kind, one of `SPANS`."""

    def hits(self, windows: Windows) -> Bool:
        """(E, L): the tokens that the rule selects. A window lies within one document. Where sources are not known, a
        rule of source selects nothing."""
        if self.source is not None:
            return np.repeat(windows.of_source(self.source)[:, None], windows.piece_EL.shape[1], axis=1)
        if self.first is not None:
            early_EL: Bool = windows.place_EL < abs(self.first)
            return early_EL if self.first > 0 else ~early_EL
        if self.end is not None or self.within is not None:
            marked = [self._in_text(windows.tokens(e)) for e in range(len(windows))]
            return np.array(marked, dtype=bool).reshape(windows.piece_EL.shape)
        hits_EL = windows.where(self.what)
        if self.before is not None:
            hits_EL[:, 1:] &= windows.where(self.before)[:, :-1]
            hits_EL[:, :1] = False
        return hits_EL

    def _in_text(self, tokens: list[str]) -> list[bool]:
        if self.within is not None:
            return within(tokens, self.within)
        assert self.end is not None
        return _ends(tokens, self.end)

    def words(self, token: str = "token") -> str:
        """The rule as an explanation."""
        if self.within is not None:
            return f"fires within {self.within}"
        if self.source is not None:
            return f"fires in documents of {_quoted(self.source)}"
        if self.first is not None:
            return f"fires {'on' if self.first > 0 else 'after'} the first {abs(self.first)} {token}s of a row"
        if self.end is not None:
            return f"fires at the end of {_quoted(self.end)}"
        return f"fires on {self.what.words(token)}" + (f" after {self.before.words(token)}" if self.before else "")


def _ends(tokens: list[str], end: str) -> list[bool]:
    text, ends = "", []
    for token in tokens:
        text += token
        ends.append(bool(token) and text.endswith(end))
    return ends


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
_WITHIN = re.compile(rf"fires within ({'|'.join(map(re.escape, SPANS))})")
_SOURCE = re.compile(rf"fires in documents of ({_TEXT})")
_FIRST = re.compile(rf"fires (on|after) the first ([1-9]\d{{0,8}}) {_TOKEN}s of a row")


def parse(explanation: str) -> Rule | None:
    """The rule that an explanation states; None where it states none."""
    text = explanation.strip()
    try:
        if match := _FIRST.fullmatch(text):
            return Rule(first=int(match[2]) * (1 if match[1] == "on" else -1))
        if match := _END.fullmatch(text):
            return Rule(end=_unquoted(match[1]))
        if match := _WITHIN.fullmatch(text):
            return Rule(within=match[1])
        if match := _SOURCE.fullmatch(text):
            return Rule(source=_unquoted(match[1]))
        if match := _ON.fullmatch(text):
            return Rule(_pattern(match[1]), _pattern(match[2]) if match[2] else None)
    except ValueError:  # not a JSON string
        return None
    return None


def _pattern(words: str) -> TokenPattern:
    if words in CLASSES:
        return TokenPattern("class", (words,))
    texts = tuple(_unquoted(each) for each in re.findall(_TEXT, words))
    if not texts:
        return TokenPattern()
    if " that begins with " in words.partition('"')[0]:
        return TokenPattern("begins", texts)
    return TokenPattern("ends" if " that ends in " in words.partition('"')[0] else "is", texts)


def _unquoted(text: str) -> str:
    read: Any = json.loads(text)
    return str(read)
