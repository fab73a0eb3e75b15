"""Tokens as text: parts of characters, every script, and bytes that are no text."""

import re
from pathlib import Path

import pytest

from explored import SCRIPTS
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.data.corpus import Corpus
from glassmoe.pages.explore.words import LONGEST, Words, visible
from text_files import prepared


@pytest.fixture(scope="module")
def words_and_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Words, object]:
    folder = tmp_path_factory.mktemp("words") / "texts"
    prepared(folder, [f"{text} {number}" for number, text in enumerate(SCRIPTS * 4)], tokenizer="train:280")
    kind = Corpus.open(folder).kind
    return Words(kind), kind


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_pieces_of_a_text_are_the_text(text: str, words_and_kind: tuple[Words, object]) -> None:
    words, kind = words_and_kind
    ids = kind.encode(text)[1:]
    pieces = words(ids)
    assert len(pieces) == len(ids)
    # A part of a character shows its bytes; what is left when those are taken out is the text.
    assert "".join(piece for piece in pieces if not re.fullmatch("(<[0-9a-f]{2}>)+", piece)) == text


def test_parts_of_a_character_by_hand(words_and_kind: tuple[Words, object]) -> None:
    words, kind = words_and_kind
    spell = {f"{byte:02x}": kind.vocabulary.index(letter) for byte, letter in ((0x41, "A"), (0xC3, "\u00c3"))}
    spell["af"] = kind.vocabulary.index("\u00af")
    assert words([spell["41"], spell["c3"], spell["af"]]) == ["A", "<c3>", "\u00ef"]
    assert words([spell["af"], spell["41"]]) == ["<af>", "A"]
    assert words([spell["c3"], spell["41"]]) == ["<c3>", "A"]
    assert words.one(spell["c3"]) == "<c3>" and words([]) == []


def test_what_is_not_seen_is_shown() -> None:
    assert visible("a\n\t\x07\u202eb\x7f") == "a\u21b5\u21e5\u2407\u2039U+202E\u203ab\u2039U+007F\u203a"


def test_games() -> None:
    assert Words(CHARACTERS)(CHARACTERS.encode(";1.e4")) == [";", "1", ".", "e", "4"]
    moves = Words(MOVES)
    assert moves.text(MOVES.encode("; e2e4 e7e5")) == "; e2e4 e7e5"


def test_a_long_token_is_cut(tmp_path: Path) -> None:
    prepared(tmp_path / "texts", [f"{n} " + "=" * 900 for n in range(40)], tokenizer="train:300")
    kind = Corpus.open(tmp_path / "texts").kind
    longest = max(range(kind.size), key=lambda token: len(kind.vocabulary[token]))
    assert len(kind.vocabulary[longest]) > LONGEST
    words = Words(kind)
    assert len(words.one(longest)) == LONGEST and words([longest])[0].endswith("...")
