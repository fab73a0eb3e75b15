"""Token ids as the pieces of text that a reader sees.

In byte-level BPE, and in byte fallback (`<0x0A>`), a token may hold part of a character. The token that completes the
character shows it; the tokens before show their bytes, as in `<e6>`. Bytes that are no text are shown in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from glassmoe.data.tokens import TEXT, TokenKind


class Spelling:
    """What the tokens of a kind spell."""

    def __init__(self, kind: TokenKind, longest: int | None = None):
        """`longest`: characters of one token that are shown, at most (default: all)."""
        self.separator = kind.separator
        self._longest = longest
        self._vocabulary = kind.vocabulary
        self._spell: Callable[[str], bytes] | None = None
        self._added: dict[int, str] = {}
        # A vocabulary is large, and a text has few of its tokens: each is spelled when it is first asked for.
        self._spelled: dict[int, tuple[bytes, str, bool]] = {}
        if kind.name == TEXT:
            assert kind.tokenizer is not None
            described = json.loads(kind.tokenizer)
            self._added = {token["id"]: token["content"] for token in described["added_tokens"]}
            self._spell = _byte_level if _has_step(described, "ByteLevel") else _sentence_piece(described)

    def _token(self, token: int) -> tuple[bytes, str, bool]:
        """Bytes and text of a token, and whether it can be read without its neighbours: whether its characters are
        whole."""
        if token not in self._spelled:
            if not 0 <= token < len(self._vocabulary):  # a model may have more rows than its tokenizer has tokens
                return f"<id {token}>".encode(), f"<id {token}>", True
            name = self._vocabulary[token]
            if self._spell is None:
                self._spelled[token] = name.encode(), self._short(name), True
            else:
                spelled = self._added[token].encode() if token in self._added else self._spell(name)
                self._spelled[token] = spelled, self._short(_pieces([spelled])[0]), _is_whole(spelled)
        return self._spelled[token]

    def one(self, token: int) -> str:
        """A token by itself."""
        return self._token(token)[1]

    def __call__(self, tokens: npt.ArrayLike) -> list[str]:
        """The pieces of a text, one per token."""
        row: list[int] = [int(token) for token in tokens]  # type: ignore[union-attr, arg-type]
        spelled = [self._token(token) for token in row]
        if all(whole for _, _, whole in spelled):
            return [text for _, text, _ in spelled]
        return [self._short(text) for text in _pieces([each for each, _, _ in spelled])]

    def text(self, tokens: npt.ArrayLike) -> str:
        """The text of some tokens, as it is written."""
        return self.separator.join(self(tokens))

    def _short(self, text: str) -> str:
        return text if self._longest is None or len(text) <= self._longest else text[: self._longest - 3] + "..."


_UNSEEN = re.compile("[\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """A text whose invisible characters, and those that change its direction, are visible signs (as in `draw.js`)."""
    return _UNSEEN.sub(lambda found: _sign(found.group()), text)


def _sign(letter: str) -> str:
    code = ord(letter)
    named = {"\n": "\u21b5", "\t": "\u21e5"}
    return named.get(letter) or (chr(0x2400 + code) if code < 32 else f"\u2039U+{code:04X}\u203a")


def _has_step(described: dict[str, Any], kind: str) -> bool:
    """Whether a tokenizer's decoder has a step of this kind."""
    decoder = described.get("decoder") or {}
    return any(step.get("type") == kind for step in [decoder, *decoder.get("decoders", [])])


# Byte-level BPE spells printable bytes as themselves, the others from U+0100 on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))
}


def _byte_level(token: str) -> bytes:
    return bytes(_BYTES[letter] for letter in token) if all(letter in _BYTES for letter in token) else token.encode()


def _sentence_piece(described: dict[str, Any]) -> Callable[[str], bytes]:
    fallback = _has_step(described, "ByteFallback")

    def spell(token: str) -> bytes:
        byte = re.fullmatch("<0x([0-9A-F]{2})>", token) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()

    return spell


def _is_whole(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pieces(tokens: list[bytes]) -> list[str]:
    """Text of each token: a character belongs to the token of its last byte."""
    joined, found, begin = b"".join(tokens), [], 0
    # End of each character -> the character; a byte outside of any character counts as one.
    at, marks = 0, {}
    while at < len(joined):
        size = _length(joined[at])
        try:
            marks[at + size] = joined[at : at + size].decode()
        except UnicodeDecodeError:
            size, marks[at + 1] = 1, f"<{joined[at]:02x}>"
        at += size
    for token in tokens:
        end = begin + len(token)
        text = "".join(marks[place] for place in range(begin + 1, end + 1) if place in marks)
        if token and not text:
            text = "".join(f"<{byte:02x}>" for byte in token)
        found.append(text)
        begin = end
    return found


def _length(first: int) -> int:
    """Bytes of a UTF-8 character, by its first byte."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
