"""The 32 characters, their published order, and the text of a game."""

import sys

import numpy as np
import pytest

from glassmoe.chess.characters import MAX_PLIES, VOCABULARY, decode, encode, move_text, require_chess


def test_vocabulary_is_the_published_one():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 32
    assert encode(";1.").tolist() == [15, 6, 4]
    assert encode(" #x").tolist() == [0, 1, 31]
    assert list(VOCABULARY) == sorted(VOCABULARY)


def test_round_trip_of_text_and_bytes():
    text = ";1.e4 e5 2.Nf3+ O-O-O 3.exd8=Q#"
    ids = encode(text)
    assert ids.dtype == np.uint8 and ids.shape == (len(text),)
    assert decode(ids) == text
    assert np.array_equal(encode(text.encode()), ids)
    assert decode(encode("")) == ""
    assert decode([15, 6, 4]) == ";1."
    assert decode(encode(VOCABULARY)) == VOCABULARY


@pytest.mark.parametrize("text", [";1.e4 i5", b";1.e4 \xff5", ";1.e4 \u26585"])
def test_foreign_character_is_named_with_its_position(text):
    with pytest.raises(ValueError, match="at position 6"):
        encode(text)


def test_first_foreign_character_is_the_one_named():
    with pytest.raises(ValueError, match="'z' at position 1 "):
        encode(";z!")


@pytest.mark.parametrize("ids", [[32], [-1], [[1, 2]], [0.5]])
def test_decode_refuses_what_is_no_token(ids):
    with pytest.raises(ValueError, match=r"token ids are|flat sequence"):
        decode(ids)


def test_move_text():
    assert move_text([]) == ";"
    assert move_text(["e4"]) == ";1.e4"
    assert move_text(["e4", "e5", "Nf3"]) == ";1.e4 e5 2.Nf3"
    assert move_text(iter(["e4"] * 20)).endswith(" 9.e4 e4 10.e4 e4")
    with pytest.raises(ValueError, match="plies"):
        move_text(["e4"] * (MAX_PLIES + 1))


def test_missing_chess_is_an_error_that_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(ValueError, match=r'pip install "glassmoe\[chess\]"'):
        require_chess("Checking games")


def test_preparing_imports_neither_torch_nor_chess():
    import subprocess

    modules = "glassmoe.data.corpus, glassmoe.data.parallel, glassmoe.chess.pgn, glassmoe.chess.selfplay"
    code = f"import sys, {modules}; print({{'torch', 'chess'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
