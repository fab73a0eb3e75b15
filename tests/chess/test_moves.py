"""Games as moves: the vocabulary, the text, and the same games in either form."""

import json

import numpy as np
import pytest

import chess
from game_files import as_pgn, pgn, synthetic
from glassmoe.chess.moves import VOCABULARY, decode_moves, encode_moves, moves_of_line
from glassmoe.chess.pgn import prepare_chess
from glassmoe.chess.selfplay import generate, play_game
from glassmoe.chess.tokens import CHARACTERS, MOVES, kind_of, pack_games
from glassmoe.data.corpus import Corpus, Rows, Sequences
from glassmoe.data.domains import token_kind
from glassmoe.data.writer import CorpusWriter

# --- the vocabulary and the text ---


def test_vocabulary_is_what_pieces_can_do_on_an_empty_board():
    moves = set()
    for piece in ("Q", "N"):
        for square in chess.SQUARES:
            board = chess.Board(None)
            board.set_piece_at(square, chess.Piece.from_symbol(piece))
            moves |= {move.uci() for move in board.pseudo_legal_moves}
    assert len(moves) == 1792
    for colour, rank in ((chess.WHITE, 6), (chess.BLACK, 1)):
        for file in range(8):
            board = chess.Board(None)
            board.turn = colour
            board.set_piece_at(chess.square(file, rank), chess.Piece(chess.PAWN, colour))
            for target in range(8):
                if target != file:
                    board.set_piece_at(chess.square(target, 7 if colour else 0), chess.Piece(chess.ROOK, not colour))
            moves |= {move.uci() for move in board.pseudo_legal_moves}
    assert len(moves) == 1792 + 176
    assert (";", *sorted(moves)) == VOCABULARY
    # A published run depends on these numbers: they must never change.
    assert [VOCABULARY.index(move) for move in ("a1a2", "e2e4", "e7e8q", "h8h7")] == [1, 1032, 1212, 1968]


def test_text_and_tokens_by_hand():
    ids = encode_moves("; e2e4 e7e5")
    assert ids.tolist() == [0, 1032, 1207] and ids.dtype == np.uint16
    assert decode_moves(ids) == "; e2e4 e7e5" and decode_moves([]) == "" and encode_moves("").size == 0
    assert decode_moves(np.arange(1969)) == " ".join(VOCABULARY)


@pytest.mark.parametrize("word", ["e2e9", "e2e5x", "e4", "e1b2e", "a6a7q", "e2e4;", "0000", "E2E4", "a1a1", "a1b4"])
def test_what_is_no_move_is_named_with_its_place(word):
    with pytest.raises(ValueError, match=f"word '{word}' at place 2 .*such as e2e4, e1g1 or a7a8q"):
        encode_moves(f"; e2e4 {word} e7e5")


def test_decode_refuses_other_numbers():
    for ids in ([1969], [-1], [[1]], [0.5]):
        with pytest.raises(ValueError, match=r"0\.\.1968|flat sequence of integers"):
            decode_moves(ids)


@pytest.mark.parametrize(
    ("line", "moves"),
    [
        (";", ";"),
        (";1.e4 e5 2.Nf3", "; e2e4 e7e5 g1f3"),
        (";1.e4 e5 2.", "; e2e4 e7e5"),
        # Both castle, on either side: the king's move, not the king onto the rook.
        (
            ";1.e4 d5 2.Nf3 Bg4 3.Be2 Nc6 4.O-O Qd6 5.a3 O-O-O",
            "; e2e4 d7d5 g1f3 c8g4 f1e2 b8c6 e1g1 d8d6 a2a3 e8c8",
        ),
        (
            ";1.d4 e5 2.Bf4 Bb4+ 3.Nc3 Nf6 4.Qd3 O-O 5.O-O-O",
            "; d2d4 e7e5 c1f4 f8b4 b1c3 g8f6 d1d3 e8g8 e1c1",
        ),
        # Capturing en passant, by White and by Black.
        (";1.e4 a6 2.e5 d5 3.exd6", "; e2e4 a7a6 e4e5 d7d5 e5d6"),
        (";1.a3 d5 2.a4 d4 3.e4 dxe3", "; a2a3 d7d5 a3a4 d5d4 e2e4 d4e3"),
        # Promotions: of White to a queen and a rook, of Black to a knight.
        (";1.a4 b5 2.axb5 a6 3.bxa6 Bb7 4.axb7 Na6 5.bxa8=Q", "; a2a4 b7b5 a4b5 a7a6 b5a6 c8b7 a6b7 b8a6 b7a8q"),
        (
            ";1.a3 h5 2.a4 h4 3.a5 h3 4.a6 hxg2 5.axb7 gxh1=N 6.bxa8=R",
            "; a2a3 h7h5 a3a4 h5h4 a4a5 h4h3 a5a6 h3g2 a6b7 g2h1n b7a8r",
        ),
        # Two knights that reach one square, and a capture.
        (";1.Nf3 d5 2.d3 e5 3.Nbd2 e4 4.dxe4", "; g1f3 d7d5 d2d3 e7e5 b1d2 e5e4 d3e4"),
    ],
)
def test_lines_become_moves(line, moves):
    assert decode_moves(moves_of_line(line)) == moves


@pytest.mark.parametrize(
    ("line", "reason"),
    [(";1.e4 e4", "illegal move, e4 at ply 2"), (";1.Nf3 d5 2.d3 e5 3.Nd2", "ambiguous move, Nd2 at ply 5")],
)
def test_a_line_that_cannot_be_played_is_refused(line, reason):
    with pytest.raises(ValueError, match=f"{reason}; pass legal moves"):
        moves_of_line(line)


def moves_by_hand(line):
    """python-chess alone, word by word."""
    board, moves = chess.Board(), [";"]
    for word in line[1:].split():
        moves.append(board.push_san(word.rpartition(".")[2]).uci())
    return " ".join(moves)


def test_lines_equal_python_chess():
    for text in synthetic(60, max_chars=600):
        assert decode_moves(moves_of_line(text)) == moves_by_hand(text)


def test_kinds():
    assert kind_of(";1.e4 e5") is kind_of(";1.") is CHARACTERS and kind_of("; e2e4") is kind_of(";") is MOVES
    assert (CHARACTERS.size, MOVES.size) == (32, 1969) and (CHARACTERS.start, MOVES.start) == (15, 0)
    assert CHARACTERS.first(";1.e4", 3) == ";1." and MOVES.first("; e2e4 e7e5", 2) == "; e2e4"
    with pytest.raises(ValueError, match=r"unknown kind of tokens 'words'; known: characters"):
        token_kind("words")


# --- on disk ---


def test_the_same_games_in_either_form(tmp_path):
    """Order, duplicates, splits and what is skipped do not depend on what a token is."""
    texts = synthetic(80) + synthetic(5)
    unplayable = pgn("e4 e5 Ke4") + pgn("e4 xx") + pgn("Nf3 d5 d3 e5 Nd2")
    (tmp_path / "games.pgn").write_text(as_pgn(texts[:30]) + unplayable + as_pgn(texts[30:]))
    made = {
        tokens: prepare_chess(
            [tmp_path / "games.pgn"], tmp_path / tokens, tokens=tokens, workers=1, valid_share=0.3, progress=False
        ).manifest
        for tokens in ("characters", "moves")
    }
    characters, moves = made["characters"], made["moves"]
    for key in ("games", "duplicates", "skipped", "checked", "inputs", "valid_share"):
        assert characters[key] == moves[key], key
    assert moves["duplicates"] == 5
    reasons = {reason: entry["count"] for reason, entry in moves["skipped"].items()}
    assert reasons == {"illegal move": 1, "not a move": 1, "ambiguous move": 1}
    assert (moves["tokens"], characters["tokens"]) == ("moves", "characters")
    assert moves["vocabulary"].split() == list(VOCABULARY)
    a, b = Corpus.open(tmp_path / "characters"), Corpus.open(tmp_path / "moves")
    assert (a.tokens, a.vocab_size, b.tokens, b.vocab_size) == ("characters", 32, "moves", 1969)
    assert a.fingerprint != b.fingerprint
    for split in ("train", "valid"):
        games, same = b.split(split), a.split(split)
        assert len(games) == len(same) > 10
        assert games.data.dtype == np.uint16 and games.data.size == moves["moves"][split]
        assert [games.text(i) for i in range(len(games))] == [moves_by_hand(same.text(i)) for i in range(len(same))]


def test_workers_and_max_games_do_not_change_moves(tmp_path):
    (tmp_path / "games.txt").write_text("\n".join(synthetic(60)) + "\n;1.e4 e4\n")
    options = {"tokens": "moves", "progress": False}
    one = prepare_chess([tmp_path / "games.txt"], tmp_path / "one", workers=1, **options)
    two = prepare_chess([tmp_path / "games.txt"] * 2, tmp_path / "two", workers=2, max_games=60, **options)
    assert one.manifest["files"] == two.manifest["files"]


def test_synthetic_games_are_the_same_in_either_form(tmp_path):
    generate(tmp_path / "m", games=12, seed=3, tokens="moves", valid_share=0.4, workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "m")
    texts = [games.text(i) for games in map(corpus.split, ("train", "valid")) for i in range(len(games))]
    assert sorted(texts) == sorted(moves_by_hand(play_game(3, number)) for number in range(12))


def test_rows_are_cut_in_moves(tmp_path):
    ids = [encode_moves(text) for text in ("; e2e4 e7e5 g1f3", "; d2d4", "; c2c4 e7e5")]
    with CorpusWriter(tmp_path / "c", MOVES, valid_share=0) as writer:
        writer.add(pack_games([b";1.e4 e5 2.Nf3", b";1.d4", b";1.c4 e5"], ids))
        writer.finish({})
    games = Corpus.open(tmp_path / "c").split("train")
    tokens, lengths = Rows(games, "games:3").batch([0, 1, 2])
    assert lengths.tolist() == [3, 2, 3] and tokens.dtype == np.uint16
    assert [decode_moves(row) for row in tokens] == ["; e2e4 e7e5", "; d2d4 ;", "; c2c4 e7e5"]
    tokens, lengths = Rows(games, "packed:5").batch([0])
    assert decode_moves(tokens[0]) == "; e2e4 e7e5 g1f3 ;" and lengths.tolist() == [5]
    with pytest.raises(ValueError, match="3 games with 9 moves"):
        Rows(games, "packed:10")


def test_moves_cannot_be_trusted(tmp_path):
    (tmp_path / "g.pgn").write_text(pgn("e4 e5"))
    with pytest.raises(ValueError, match=r"have to be replayed, which trust=True \(--trust\) leaves out"):
        prepare_chess([tmp_path / "g.pgn"], tmp_path / "o", tokens="moves", trust=True)
    with pytest.raises(ValueError, match="unknown tokens 'words' for games; expected characters or moves"):
        prepare_chess([tmp_path / "g.pgn"], tmp_path / "o", tokens="words")
    assert not (tmp_path / "o").exists()


OLD_TEXTS = [b";1.e4 e5 2.Nf3 Nc6 3.Bb5", b";1.d4 d5 2.c4", b";1.c4", b";1.e4 c5", b";1.c4", b";1.g3 g6 2.Bg2 Bg7"]


def test_folders_of_characters_keep_their_fingerprint(tmp_path):
    """The fingerprint is the one that was published when every folder held characters; those folders still open."""
    with CorpusWriter(tmp_path / "c", CHARACTERS, valid_share=0.5) as writer:
        writer.add(pack_games(OLD_TEXTS))
        manifest = writer.finish({"synthetic": False}).manifest
    known = "c6a68ce7df466d241ee2a6aa0f507968099ee1456bd266a8f72449ede189851c"
    assert Corpus.open(tmp_path / "c").fingerprint == known
    old = {key: value for key, value in manifest.items() if key != "tokens"}
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(old))
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.fingerprint == known and corpus.tokens == "characters" and corpus.require("characters") is corpus
    with pytest.raises(ValueError, match=r"holds games as characters, expected games as moves; .*--tokens moves"):
        corpus.require("moves")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"tokens": "words"}))
    with pytest.raises(ValueError, match="unknown kind of tokens 'words'"):
        Corpus.open(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"tokens": ["moves"]}))
    with pytest.raises(ValueError, match="not the manifest"):
        Corpus.open(tmp_path / "c")


def test_games_of_moves_by_hand():
    games = Sequences(np.array([0, 1032, 0], np.uint16), np.array([0, 2, 3], np.uint64), MOVES)
    assert [games.text(0), games.text(1)] == ["; e2e4", ";"] and games.tokens(0).tolist() == [0, 1032]
