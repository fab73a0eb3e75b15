"""Tokens as text: parts of characters, every script, and bytes that are no text."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from explored import SCRIPTS
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.data.corpus import Corpus
from glassmoe.text import spelling
from glassmoe.text.spelling import Spelling, visible
from glassmoe.text.tokens import text_kind
from text_files import prepared


@pytest.fixture(scope="module")
def words_and_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spelling, object]:
    folder = tmp_path_factory.mktemp("words") / "texts"
    prepared(folder, [f"{text} {number}" for number, text in enumerate(SCRIPTS * 4)], tokenizer="train:280")
    kind = Corpus.open(folder).kind
    return Spelling(kind), kind


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_pieces_of_a_text_are_the_text(text: str, words_and_kind: tuple[Spelling, object]) -> None:
    words, kind = words_and_kind
    ids = kind.encode(text)[1:]
    pieces = words(ids)
    assert len(pieces) == len(ids)
    # A part of a character shows its bytes; what is left when those are taken out is the text.
    assert "".join(piece for piece in pieces if not re.fullmatch("(<[0-9a-f]{2}>)+", piece)) == text


def test_parts_of_a_character_by_hand(words_and_kind: tuple[Spelling, object]) -> None:
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
    assert Spelling(CHARACTERS)(CHARACTERS.encode(";1.e4")) == [";", "1", ".", "e", "4"]
    moves = Spelling(MOVES)
    assert moves.text(MOVES.encode("; e2e4 e7e5")) == "; e2e4 e7e5"


def test_a_long_token_is_cut(tmp_path: Path) -> None:
    prepared(tmp_path / "texts", [f"{n} " + "=" * 900 for n in range(40)], tokenizer="train:300")
    kind = Corpus.open(tmp_path / "texts").kind
    longest = max(range(kind.size), key=lambda token: len(kind.vocabulary[token]))
    whole, words = Spelling(kind), Spelling(kind, 60)
    assert len(whole.one(longest)) > 60 and whole([longest]) == [whole.one(longest)]
    assert len(words.one(longest)) == 60 and words([longest])[0].endswith("...")


def sentence_piece() -> str:
    """A tokenizer with byte fallback, like Llama's."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581the",
        "\u2581cat",
        "s",
    ]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str()


def test_bytes_of_sentence_piece_are_text() -> None:
    kind = text_kind(sentence_piece(), "<s>")
    spelling, ids = Spelling(kind), {piece: place for place, piece in enumerate(kind.vocabulary)}
    assert [spelling.one(ids[piece]) for piece in ("<0x0A>", "\u2581cat", "s", "<s>", "<0xE6>")] == [
        "\n",
        " cat",
        "s",
        "<s>",
        "<e6>",
    ]
    assert spelling([ids["\u2581the"], ids["<0xC3>"], ids["<0xAF>"], ids["s"]]) == [" the", "<c3>", "\u00ef", "s"]


def test_a_piece_that_looks_like_a_byte_is_one_only_with_byte_fallback() -> None:
    described = json.loads(sentence_piece())
    described["decoder"] = {"type": "Fuse"}
    kind = text_kind(json.dumps(described), "<s>")
    assert Spelling(kind).one(kind.vocabulary.index("<0x0A>")) == "<0x0A>"


def test_only_requested_tokens_are_spelled(
    words_and_kind: tuple[Spelling, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real vocabulary takes seconds to spell, and graphs of prompts need few of its tokens."""
    spelled: list[list[bytes]] = []
    pieces = spelling._pieces
    monkeypatch.setattr(spelling, "_pieces", lambda tokens: spelled.append(tokens) or pieces(tokens))
    words = Spelling(words_and_kind[1])
    assert not spelled
    first = words([65, 66, 65]), words.one(66)
    assert (words([65, 66, 65]), words.one(66)) == first and len(spelled) == 2
