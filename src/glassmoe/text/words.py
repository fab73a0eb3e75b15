"""Ids of words, cached: text in byte-level BPE, several times as fast as the tokenizer by itself.

A text is cut where the tokenizer joins nothing, and the ids of each piece (a "word") are looked up. The tokenizer reads
words that are not in the cache as one long text, and its ids are divided among the words by their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import compress
from operator import not_
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

KNOWN_WORDS, LONGEST_WORD = 1 << 18, 64
"""Number of words whose ids an encoder caches (about 60 MB), and the length of the longest cached word in
characters."""

# The text between two cuts. Cuts are between a letter and an ASCII mark or white space, between any character and white
# space that begins with a space, and after a single line end between two characters that are not white space. (Python
# counts more characters as white space than tokenizers do, which at worst saves a cut.)
_MARK = r"[!-/:-@\[-`{-~]"
_WORD = rf"\s*+{_MARK}*+[A-Za-z]++(?={_MARK}|\s)"
_OTHER = r"\s*\S+(?:(?! |\n\S)\s+\S*)*(?:\n(?=\S))?|\s+"
_WORDS = re.compile(f"{_WORD}|{_OTHER}")
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}{_REST}" for digits in ("", "{1,3}")
}
"""The patterns of Qwen 2 and Llama 3. The pattern of GPT-2 is built into the byte level."""

_JOINED = 1024
"""Number of words that the tokenizer reads as one text."""
# A word that can stand between any two others, because cuts are around it: after " a\n" where it begins without a
# space, and before "a" where it ends with a line end.
_JOINS = re.compile(r" ?\S(?:.*\S)?\n?", re.DOTALL)
# Most words need nothing around them, and have a byte a character.
_PLAIN = re.compile(r" [!-~](?:[\0-\x7f]*[!-~])?")


def cuts_at_words(described: dict[str, Any]) -> bool:
    """Whether a tokenizer, `described` by its JSON, gives the pieces of a text that `_WORDS` cuts the same tokens as
    the whole text. This is known of byte-level BPE with the pattern of GPT-2 (also of GPT-NeoX), Llama 3 or Qwen 2.
    None of them joins white space or a mark to a letter before it, a space to any character before it that is not white
    space, or a single line end to the character after it."""
    steps = described["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    level = steps[-1]
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space", True):
        return False
    splits = [step.get("pattern", {}).get("Regex") for step in steps[:-1]]
    isolated = all(step.get("behavior") == "Isolated" and not step.get("invert") for step in steps[:-1])
    known = (not splits) if level.get("use_regex", True) else (len(splits) == 1 and splits[0] in SPLITS and isolated)
    model, normalizer = described["model"], described["normalizer"]
    return bool(
        known
        and model["type"] == "BPE"
        and not model.get("dropout")
        # A composed character never contains a space or a line end.
        and (normalizer is None or normalizer["type"] == "NFC")
        and all(_uncut(token) for token in described["added_tokens"])
    )


def _uncut(token: dict[str, Any]) -> bool:
    """Whether no cut splits an added token that a text spells out; special tokens are read as text."""
    runs_of_spaces = len(token["content"]) > 1 and not token["content"].strip(" ")
    return bool(token["special"] or (runs_of_spaces and not token["lstrip"] and not token["rstrip"]))


def tokens_by_id(id_of: Mapping[str, int]) -> list[str]:
    """The tokens in the order of their ids; an id without a token has an empty one."""
    tokens = [""] * (max(id_of.values()) + 1)
    for token, token_id in id_of.items():
        tokens[token_id] = token
    return tokens


def spelled_bytes(described: dict[str, Any], vocabulary: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of bytes that each token of a byte-level BPE spells, int64 [ids]. `described`: the JSON of the
    tokenizer."""
    # The alphabet of byte-level BPE has one character a byte; added tokens are spelled as they are.
    lengths = np.array([len(token) for token in vocabulary], dtype=np.int64)
    for added in described["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode("utf-8"))
    return lengths


def ask(tokenizer: Tokenizer, texts: Sequence[str], dtype: np.dtype[Any]) -> list[bytes]:
    """The token ids of texts by the tokenizer itself, as bytes of `dtype`."""
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(each.ids, dtype).tobytes() for each in encoded]


class _Known(dict[str, bytes | None]):
    """Word -> ids. A word that is looked up for the first time has the ids None and is noted."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def __missing__(self, word: str) -> None:
        self.missing.append(word)
        self[word] = None


class WordIds:
    """The ids of texts by a tokenizer for which `cuts_at_words` is true, through a cache of words. `described`: the
    JSON of the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], described: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._known = _Known()
        id_of = described["model"]["vocab"] | {each["content"]: each["id"] for each in described["added_tokens"]}
        self._bytes_of = spelled_bytes(described, tokens_by_id(id_of))
        # A normalizer may change the bytes of other words.
        self._ascii_only = described["normalizer"] is not None

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as bytes of the type of ids."""
        known = self._known
        if len(known) > KNOWN_WORDS:
            known.clear()
        words_of: list[list[str]] = []
        ids_of: list[list[bytes | None]] = []
        for text in texts:  # each is cut and looked up at once, while its words are in the processor's cache
            words_of.append(_WORDS.findall(text))
            ids_of.append(list(map(known.__getitem__, words_of[-1])))
        new, known.missing = known.missing, []
        try:
            known.update(self._ask(new))
        except BaseException:
            known.clear()
            raise
        for words, ids in zip(words_of, ids_of, strict=True):
            place = -1
            with suppress(ValueError):  # no further None
                while True:
                    place = ids.index(None, place + 1)
                    ids[place] = known[words[place]]
        for word in new:
            if len(word) > LONGEST_WORD:
                del known[word]
        return [b"".join(cast("list[bytes]", ids)) for ids in ids_of]

    def _ask(self, words: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Words with their ids."""
        for start in range(0, len(words), _JOINED):
            some = words[start : start + _JOINED]
            fits = [*map(_PLAIN.fullmatch, some)]
            plain = [*compress(some, fits)]
            if plain:
                sizes = np.fromiter(map(len, plain), np.int64, len(plain))
                ends = np.cumsum(sizes)
                yield from zip(plain, self._ask_text("".join(plain), ends - sizes, ends, plain), strict=True)
            joined: list[str] = []
            alone: list[str] = []
            for word in compress(some, map(not_, fits)):
                fit = _JOINS.fullmatch(word) and (not self._ascii_only or word.isascii())
                (joined if fit else alone).append(word)
            if joined:
                yield from zip(joined, self._ask_joined(joined), strict=True)
            yield from zip(alone, ask(self._tokenizer, alone, self._dtype), strict=True)

    def _ask_joined(self, words: Sequence[str]) -> list[bytes]:
        """The ids of words that fit `_JOINS`, from one text that holds them all."""
        parts: list[str] = []
        starts, ends, size = [], [], 0
        for word in words:
            if word[0] != " ":
                parts.append(" a\n")
                size += 3
            starts.append(size)
            parts.append(word)
            size += len(word) if word.isascii() else len(word.encode("utf-8"))
            ends.append(size)
            if word[-1] == "\n":
                parts.append("a")
                size += 1
        return self._ask_text("".join(parts), np.array(starts, np.int64), np.array(ends, np.int64), words)

    def _ask_text(
        self, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], words: Sequence[str]
    ) -> list[bytes]:
        """The ids of words that lie at these bytes of a text."""
        [encoded] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = np.array(encoded.ids, self._dtype)
        ends_of_ids = np.cumsum(np.concatenate([[0], self._bytes_of[ids]]))
        first, last = np.searchsorted(ends_of_ids, starts), np.searchsorted(ends_of_ids, ends)
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
        if ends_of_ids[-1] != size or (ends_of_ids[first] != starts).any() or (ends_of_ids[last] != ends).any():
            # The tokenizer does not spell all bytes: it has no token for some of them.
            return ask(self._tokenizer, words, self._dtype)
        raw, itemsize = ids.tobytes(), self._dtype.itemsize
        places = zip((first * itemsize).tolist(), (last * itemsize).tolist(), strict=True)
        return [raw[begin:end] for begin, end in places]
