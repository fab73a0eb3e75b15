"""Tokenizers of text, trained or loaded, and the kind of tokens that a tokenizer makes.

Ids come from a `tokenizers.Tokenizer`. Special tokens in the text of a document are read as text; only a separator is
added, with which every document begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from glassmoe.data.tokens import TEXT, TokenKind, Tokens

from .gguf import from_pretrained, gguf_of
from .spelling import Spelling
from .words import WordIds, ask, cuts_at_words, spelled_bytes, tokens_by_id

SEPARATOR = "<|endoftext|>"
LEAST_IDS = 257
"""Size of the smallest byte-level vocabulary: the separator and every byte."""

PIECE_CHARACTERS = 1 << 20
"""A longer text is tokenised in pieces of about this many characters, because memory is proportional to a piece."""


Encode = Callable[[list[str]], list[Tokens]]


def text_kind(tokenizer_json: str, start: str = SEPARATOR, id_of_start: int | None = None) -> TokenKind:
    """The kind of tokens that a tokenizer makes. Documents begin with its token `start`, or with the token of the id
    `id_of_start`. ValueError when the JSON is not a tokenizer, or lacks that token."""
    return kind_and_encoder(tokenizer_json, start, id_of_start)[0]


def kind_and_encoder(
    tokenizer_json: str, start: str = SEPARATOR, id_of_start: int | None = None
) -> tuple[TokenKind, Encode]:
    """`text_kind`, and the `document_encoder` of its tokenizer."""
    tokenizer = read_tokenizer(tokenizer_json)
    id_of = tokenizer.get_vocab(with_added_tokens=True)
    if id_of_start is not None:
        start = str(tokenizer.id_to_token(id_of_start))
    if start not in id_of:
        raise ValueError(
            f"the tokenizer has no token {start!r} for the start of a document; pass a different tokenizer"
        )
    vocabulary = tokens_by_id(id_of)
    dtype = np.dtype("<u2") if len(vocabulary) <= 1 << 16 else np.dtype("<u4")
    begin = id_of[start]
    encode = document_encoder(tokenizer, begin, dtype)

    def decode(ids: npt.ArrayLike) -> str:
        row = np.asarray(ids).tolist()
        return str(tokenizer.decode(row[1:] if row[:1] == [begin] else row, skip_special_tokens=False))

    kind = TokenKind(
        name=TEXT,
        domain="text",
        vocabulary=vocabulary,
        separator="",
        dtype=dtype,
        encode=lambda text: encode([text])[0],
        decode=decode,
        prompt="",
        about=f"text in the tokens of `tokenizer.json` ({len(vocabulary):,} ids; a document begins with `{start}`)",
        one="token",
        counted="token_counts",
        start_token=start,
        unit="documents",
        tokenizer=tokenizer_json,
        # By the spelling, because some decoders drop the space before a token that stands alone.
        token_class=lambda token: "start" if token == begin else word_class(spelling().one(token)),
    )
    spelling = cache(lambda: Spelling(kind))  # reads the whole tokenizer, which is seldom needed
    return kind, encode


def word_class(text: str) -> str:
    """Class of a token by its spelling: space, number, mark, word (after a space), Word (a word with a capital), inside
    (letters that continue a word)."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isdigit():
        return "number"
    if not bare[0].isalpha():
        return "mark"
    if bare[0].isupper():
        return "Word"
    return "word" if text[0].isspace() else "inside"


def read_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer that reads special tokens in a text as text. ValueError when the JSON is not a tokenizer."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"not a tokenizer of the `tokenizers` library: {error}; pass a different one") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def document_encoder(tokenizer: Tokenizer, start: int, dtype: np.dtype[Any]) -> Encode:
    """A function from texts to their token ids, each with the separator first.

    Where the tokenizer treats words separately (`cuts_at_words`), ids of words are cached (`words.py`), which is
    several times as fast as tokenising them again; the result is the same.
    """

    # Decided on the first text, because most users of prepared text encode none.
    @cache
    def look_up() -> Callable[[list[str]], list[bytes]]:
        described = json.loads(tokenizer.to_str())
        if cuts_at_words(described):
            return WordIds(tokenizer, dtype, described)
        return lambda parts: ask(tokenizer, parts, dtype)

    def encode(texts: list[str]) -> list[Tokens]:
        parts = [cut_text(text) for text in texts]
        encoded = chain.from_iterable(look_up()(group) for group in _groups(chain.from_iterable(parts)))
        begin = np.array([start], dtype).tobytes()
        # A bytearray, because an array on bytes is read-only.
        return [np.frombuffer(bytearray().join((begin, *islice(encoded, len(some)))), dtype) for some in parts]

    return encode


def _groups(parts: Iterable[str]) -> Iterator[list[str]]:
    """Parts in groups of about `PIECE_CHARACTERS`."""
    group: list[str] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part)
        if size >= PIECE_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def cut_text(text: str, longest: int = PIECE_CHARACTERS) -> list[str]:
    """A text in pieces of at most `longest` characters. If possible it is cut where byte-level BPE joins nothing:
    before a single space between words, or after a single line end."""
    pieces, begin = [], 0
    while len(text) - begin > longest:
        end = begin + longest
        cut = next(
            (
                place
                for place in range(end - 1, max(begin + 1, end - 10_000), -1)
                if (text[place] == " " and not text[place - 1].isspace() and not text[place + 1].isspace())
                or (text[place - 1] == "\n" and not text[place].isspace() and not text[place - 2].isspace())
            ),
            end,
        )
        pieces.append(text[begin:cut])
        begin = cut
    return [*pieces, text[begin:]]


def train_tokenizer(texts: Iterable[str], size: int) -> str:
    """A byte-level BPE of `size` ids as JSON; its first id is the separator. It has fewer ids when the text has nothing
    left to merge. Equal texts give equal tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def load_tokenizer(name: str | Path) -> tuple[str, str]:
    """`(JSON, separator)` of a transformers tokenizer, by name or directory, or of a prepared folder of text. The
    separator is what `start_of` says. ValueError when there is no such tokenizer, or it is not backed
    by `tokenizers`."""
    name = str(name)
    path = Path(name)
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return (path / "tokenizer.json").read_text(encoding="utf-8"), str(manifest["tokenizer"]["separator"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not a folder that we prepared
    from transformers import AutoTokenizer

    expected = "pass train:N, a directory with a transformers tokenizer (tokenizer.json), or the name of one on the hub"
    if path.is_file() and gguf_of(path) is None:
        raise ValueError(f"--tokenizer {name} is a file; {expected}")
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ValueError(f"--tokenizer {name}: there is no such directory; {expected}")
    arguments = from_pretrained(name, trust_remote_code=False)
    try:
        loaded: Any = AutoTokenizer.from_pretrained(**arguments)
    except Exception as error:  # what transformers raises depends on where it stumbles
        raise ValueError(f"cannot load --tokenizer {name}: {loading_failure(error)}; {expected}") from None
    backend = getattr(loaded, "backend_tokenizer", None)
    start = start_of(loaded)
    if backend is None or start is None:
        lacks = "a bos or eos token to begin documents with" if backend else "a tokenizer.json"
        raise ValueError(f"--tokenizer {name} lacks {lacks}; {expected}")
    return str(backend.to_str()), start


def start_of(tokenizer: Any) -> str | None:
    """The token with which documents begin: the bos of a transformers tokenizer, or else its eos; None where it has
    neither. Whatever prepares, measures or continues text begins it so; what a model's configuration says is not
    read."""
    start = tokenizer.bos_token or tokenizer.eos_token
    return None if start is None else str(start)


def loading_failure(error: Exception) -> str:
    """Why transformers loaded nothing, in at most 40 words."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own (auto_map), which glassmoe does not run"
    return " ".join(str(error).split()[:40])


def byte_lengths(kind: TokenKind) -> npt.NDArray[np.int64] | None:
    """Number of UTF-8 bytes of each token, int64 [ids], 0 for the separator. None where a token alone does not decide
    it: for tokenizers that are not byte-level BPE, or that change a text before they cut it."""
    assert kind.tokenizer is not None
    described = json.loads(kind.tokenizer)
    steps = described["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    exact = {"ByteLevel", "Split", "Digits", "Punctuation"}
    if (
        not levels
        or any(step.get("add_prefix_space", False) for step in levels)
        or any(step.get("type") not in exact or step.get("behavior", "Isolated") == "Removed" for step in steps)
        or described["normalizer"] is not None
    ):
        return None
    lengths = spelled_bytes(described, kind.vocabulary)
    lengths[kind.start] = 0
    return lengths
