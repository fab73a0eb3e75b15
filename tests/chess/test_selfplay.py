"""Synthetic games: legal, canonical, varied, the same whatever the number of workers."""

import re

import pytest

import chess
from glassmoe.chess.characters import move_text
from glassmoe.chess.selfplay import _SCHOOLS, _squares, generate, play_game
from glassmoe.data.corpus import Corpus


def sans_of(text):
    return re.sub(r"\d+\.", "", text.removeprefix(";")).split()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selfplay") / "many"
    manifest = generate(folder, games=1400, seed=7, max_chars=180, progress=False).manifest
    return manifest, Corpus.open(folder)


@pytest.fixture(scope="module")
def texts(many):
    _, corpus = many
    return [games.text(i) for games in map(corpus.split, ("train", "valid")) for i in range(len(games))]


def replay(text, plies=None):
    board = chess.Board()
    for san in sans_of(text)[:plies]:
        board.push_san(san)
    return board


def canonical(text):
    board, sans = chess.Board(), []
    for san in sans_of(text):
        move = board.parse_san(san)
        sans.append(board.san(move))
        board.push(move)
    return move_text(sans)


def test_the_manifest_records_synthetic_games(many):
    manifest, corpus = many
    assert manifest["synthetic"] is True and manifest["checked"] is True and manifest["seed"] == 7
    assert sum(manifest["games"].values()) + manifest["duplicates"] == 1400
    assert 90 < manifest["games"]["valid"] < 190
    assert corpus.manifest == manifest


def test_games_are_legal_and_canonical(texts):
    for text in texts[:250]:
        assert canonical(text) == text
    long_games = [play_game(0, number, 4000) for number in range(12)]
    assert all(canonical(text) == text for text in long_games)
    assert any(replay(text).is_game_over(claim_draw=True) for text in long_games)


def test_games_hold_every_kind_of_move(texts):
    text = " ".join(texts + [play_game(0, number, 1500) for number in range(30)])
    for kind in (
        r"O-O ",
        r"O-O-O ",
        r"=Q",
        r"\+",
        r"#",
        r"[KQRBN]x",
        r"[a-h]x",
        r"[NR][a-h][a-h]\d",
        r"[NR]\d[a-h]\d",
    ):
        assert re.search(kind, text), kind


def test_texts_stop_with_the_move_that_reaches_the_limit(texts):
    for text in texts:
        shortened = text.rsplit(" ", 1)[0]
        assert len(shortened) < 180
        assert len(text) >= 180 or text.endswith("#") or replay(text).is_game_over(claim_draw=True)


def test_positions_at_ply_20_are_distinct(texts):
    reached = [text for text in texts if len(sans_of(text)) >= 20]
    assert len(reached) > 0.98 * len(texts)
    sample = reached[:1000]
    assert len({replay(text, 20).epd() for text in sample}) > 0.95 * len(sample)


@pytest.mark.slow
def test_20000_games_reach_5000_distinct_positions_at_ply_20():
    texts = [play_game(1, number, 120) for number in range(20_000)]
    assert len({replay(text, 20).epd() for text in texts if len(sans_of(text)) >= 20}) > 0.9 * len(texts)


def white_moves(text):
    """White's moves as (from, to, piece type)."""
    board, moves = chess.Board(), []
    for ply, san in enumerate(sans_of(text)):
        move = board.parse_san(san)
        if ply % 2 == 0:
            moves.append((move.from_square, move.to_square, board.piece_type_at(move.from_square)))
        board.push(move)
    return moves


def test_each_side_follows_a_school(texts):
    """Its three moves come first, and its favourite piece moves most from then on."""
    setups = [{*_squares(text, white=True)} for text, _ in _SCHOOLS]
    followers = [[] for _ in setups]
    for text in texts[:400]:
        moves = white_moves(text)
        played = {(origin, target) for origin, target, _ in moves[:5]}
        for school, setup in zip(followers, setups, strict=True):
            if setup <= played:
                school.append(moves[5:])
    assert sum(map(len, followers)) > 0.8 * 400 and min(map(len, followers)) > 20

    def share(games, favourite):
        pieces = [piece for moves in games for *_, piece in moves]
        return pieces.count(favourite) / len(pieces)

    for number, (_, favourite) in enumerate(_SCHOOLS):
        others = [moves for i, games in enumerate(followers) if i != number for moves in games]
        assert share(followers[number], favourite) > 1.5 * share(others, favourite), favourite


def test_black_mirrors_white():
    assert _squares("d2d4 g1f3", white=True) == [(chess.D2, chess.D4), (chess.G1, chess.F3)]
    assert _squares("d2d4 g1f3", white=False) == [(chess.D7, chess.D5), (chess.G8, chess.F6)]


def test_result_does_not_depend_on_workers(tmp_path):
    one = generate(tmp_path / "one", games=120, seed=3, max_chars=40, workers=1, progress=False).manifest
    two = generate(tmp_path / "two", games=120, seed=3, max_chars=40, workers=2, progress=False).manifest
    other = generate(tmp_path / "other", games=120, seed=4, max_chars=40, workers=1, progress=False).manifest
    assert one == two
    assert one["files"] != other["files"]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="games is 0"):
        generate(tmp_path / "c", games=0)
    with pytest.raises(ValueError, match="max_chars"):
        generate(tmp_path / "c", games=1, max_chars=4)
    with pytest.raises(ValueError, match="workers"):
        generate(tmp_path / "c", games=1, workers=0, progress=False)
    assert not (tmp_path / "c").exists()
