"""Tokenizers of text: trained on it, or loaded; and the form of tokens that one makes.

Ids come from a `tokenizers.Tokenizer` without its special tokens, which in a document's own text count as text; what is
added is one separator, with which every document begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .tokens import TEXT, TokenKind, Tokens

SEPARATOR = "<|endoftext|>"
LEAST_IDS = 257
"""Ids of the smallest byte-level vocabulary: the separator and every byte."""

PIECE_CHARACTERS = 1 << 20
"""A longer text is tokenised in pieces of about this many characters, as memory is proportional to a piece."""


def text_kind(tokenizer_json: str, start: str = SEPARATOR, id_of_start: int | None = None) -> TokenKind:
    """The form of text whose tokens are those of a tokenizer; documents begin with its token `start`, or that of the
    id `id_of_start`. ValueError when the JSON is not a tokenizer, or lacks that token."""
    tokenizer = read_tokenizer(tokenizer_json)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if id_of_start is not None:
        start = str(tokenizer.id_to_token(id_of_start))
    if start not in ids:
        raise ValueError(f"the tokenizer has no token {start!r} for the start of a document; give another tokenizer")
    vocabulary = [""] * (max(ids.values()) + 1)
    for token, place in ids.items():
        vocabulary[place] = token
    dtype = np.dtype("<u2") if len(vocabulary) <= 1 << 16 else np.dtype("<u4")
    begin = ids[start]

    def decode(given: npt.ArrayLike) -> str:
        row = np.asarray(given).tolist()
        return str(tokenizer.decode(row[1:] if row[:1] == [begin] else row, skip_special_tokens=False))

    return TokenKind(
        name=TEXT,
        vocabulary=vocabulary,
        separator="",
        dtype=dtype,
        encode=lambda text: encode_documents(tokenizer, [text], begin, dtype)[0],
        decode=decode,
        prompt="",
        about=f"text in the tokens of `tokenizer.json` ({len(vocabulary):,} ids; a document begins with `{start}`)",
        one="token",
        counted="token_counts",
        start_token=start,
        unit="documents",
        tokenizer=tokenizer_json,
    )


def read_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer that takes special tokens in a text for text. ValueError when the JSON is none."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"not a tokenizer of the `tokenizers` library: {error}; give another") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: list[str], start: int, dtype: np.dtype[Any]) -> list[Tokens]:
    """Token ids of each text, its separator first."""
    pieces = [cut_text(text) for text in texts]
    encoded = iter(tokenizer.encode_batch_fast([piece for each in pieces for piece in each], add_special_tokens=False))
    found = []
    for each in pieces:
        ids = [np.array([start], dtype), *(np.array(next(encoded).ids, dtype) for _ in each)]
        found.append(np.concatenate(ids))
    return found


def cut_text(text: str, longest: int = PIECE_CHARACTERS) -> list[str]:
    """A text in pieces of at most `longest` characters, cut before single spaces or line ends between words where
    there are any, which byte-level BPE does not join to what stands before them."""
    pieces, begin = [], 0
    while len(text) - begin > longest:
        end = begin + longest
        cut = next(
            (
                place
                for place in range(end - 1, max(begin, end - 10_000), -1)
                if text[place] in " \n" and not text[place - 1].isspace() and not text[place + 1].isspace()
            ),
            end,
        )
        pieces.append(text[begin:cut])
        begin = cut
    return [*pieces, text[begin:]]


def train_tokenizer(texts: Iterable[str], size: int) -> str:
    """A byte-level BPE of `size` ids, the first of them the separator, as JSON; fewer where the text has no more to
    merge. Equal texts give equal tokenizers."""
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


def load_tokenizer(name: str) -> tuple[str, str]:
    """`(JSON, separator)` of a transformers tokenizer, by name or directory, or of a prepared folder of text. The
    separator is its bos or else its eos token. ValueError when there is none, or it is not backed by `tokenizers`."""
    path = Path(name)
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return (path / "tokenizer.json").read_text(encoding="utf-8"), str(manifest["tokenizer"]["separator"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not a folder that we prepared
    from transformers import AutoTokenizer

    expected = "give train:N, a directory with a transformers tokenizer (tokenizer.json), or the name of one on the hub"
    if path.is_file():
        raise ValueError(f"--tokenizer {name} is a file; {expected}")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ValueError(f"--tokenizer {name}: there is no such directory; {expected}")
    try:
        loaded: Any = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # what transformers raises depends on where it stumbles
        reason = " ".join(str(error).split()[:30])
        raise ValueError(f"--tokenizer {name} could not be loaded: {reason}; {expected}") from None
    backend = getattr(loaded, "backend_tokenizer", None)
    start = loaded.bos_token or loaded.eos_token
    if backend is None or start is None:
        lacks = "a bos or eos token to begin documents with" if backend else "a tokenizer.json"
        raise ValueError(f"--tokenizer {name} lacks {lacks}; {expected}")
    return str(backend.to_str()), str(start)


def byte_lengths(kind: TokenKind) -> npt.NDArray[np.int64] | None:
    """Bytes of UTF-8 that each id stands for, int64 [ids], the separator for none; None where a token alone does not
    tell them, as with tokenizers that are not byte-level BPE or change a text before they cut it."""
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
    # A byte is one character in the alphabet of byte-level BPE; added tokens are spelled as they are.
    lengths = np.array([len(token) for token in kind.vocabulary], dtype=np.int64)
    for added in described["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode("utf-8"))
    lengths[kind.start] = 0
    return lengths
