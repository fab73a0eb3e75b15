"""Legal-move rate: models by hand whose predictions are known, and the same by slower means."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import chess
from glassmoe.chess.board_evaluation import choose_games
from glassmoe.chess.characters import VOCABULARY as CHARACTERS
from glassmoe.chess.legal_moves import (
    LegalMovesResult,
    characters_asked,
    evaluate_legal_moves,
    move_written,
    moves_asked,
    written,
)
from glassmoe.chess.moves import VOCABULARY as MOVES
from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.sample import continuations
from glassmoe.model import GlassConfig, GlassForCausalLM


class AlwaysTheSame(nn.Module):
    """A model of moves that gives the same probabilities everywhere."""

    def __init__(self, chances: dict[str, float]) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(torch.full((len(MOVES),), -torch.inf))
        with torch.no_grad():
            for move, chance in chances.items():
                self.logits_V[MOVES.index(move)] = float(np.log(chance))
        self.config = SimpleNamespace(tokens="moves", context=40)

    def forward(self, tokens_GN: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits_V.expand(*tokens_GN.shape, -1))


class Writer(nn.Module):
    """A model of characters that continues a text as `following` says."""

    def __init__(self, following: Callable[[str], str]) -> None:
        super().__init__()
        self.following, self.any = following, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(tokens="characters", context=256)

    def forward(self, tokens_GN: Tensor, past_key_values: Any, use_cache: bool, logits_to_keep: int) -> Any:
        assert use_cache and logits_to_keep == 1
        new = ["".join(CHARACTERS[token] for token in row) for row in tokens_GN.tolist()]
        texts = [before + more for before, more in zip(past_key_values or [""] * len(new), new, strict=True)]
        logits_G1V = torch.zeros(len(texts), 1, len(CHARACTERS))
        for row, text in enumerate(texts):
            logits_G1V[row, 0, CHARACTERS.index(self.following(text))] = 1
        return SimpleNamespace(logits=logits_G1V, past_key_values=texts)


def test_moves_by_hand() -> None:
    """e2e4 is legal at the start and its alternative e7e5 is not; after e2e4 it is the other way round; after both,
    neither is."""
    model = AlwaysTheSame({"e2e4": 0.75, "e7e5": 0.25})
    ((first, second, third),) = moves_asked(model, ["; e2e4 e7e5 g1f3"])
    assert first == (True, True, pytest.approx(0.75))
    assert second == (False, False, pytest.approx(0.25))
    assert third == (False, False, 0.0)


def test_shares_and_intervals_are_over_games(played_moves: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassmoe.chess import legal_moves

    games = {"test": ["; e2e4 e7e5 g1f3", "; d2d4 d7d5"]}
    monkeypatch.setattr(legal_moves, "choose_games", lambda *_: games)
    found = evaluate_legal_moves(AlwaysTheSame({"e2e4": 0.75, "e7e5": 0.25}), played_moves)
    # Game 1: e2e4 is legal at 1 of 3 places; game 2: at the first of 2.
    assert (found.games, found.positions) == (2, 5)
    assert found.legal == pytest.approx((1 / 3 + 1 / 2) / 2) and found.played == pytest.approx((1 / 3 + 0) / 2)
    assert found.half == pytest.approx(12.7062 * (1 / 6) / 2, rel=1e-4)  # t of one degree, deviation / sqrt(2)
    assert found.mass == pytest.approx(((0.75 + 0.25) / 3 + (0.75 + 0.25) / 2) / 2)
    assert LegalMovesResult.from_dict(found.to_dict()) == found
    assert "| legal  | +-" in found.table() and "every move" in found.table()


@pytest.mark.parametrize(
    ("fen", "text", "move"),
    [
        (chess.STARTING_FEN, "e4 e5 2.", "e2e4"),
        (chess.STARTING_FEN, "Nf3 ", "g1f3"),
        (chess.STARTING_FEN, "Nf3", None),  # it does not end
        (chess.STARTING_FEN, "e5 ", None),
        (chess.STARTING_FEN, "-- ", None),  # python-chess reads it as a move that passes
        (chess.STARTING_FEN, " e4", None),
        (chess.STARTING_FEN, "e4;1.d4", "e2e4"),
        ("6k1/5ppp/8/8/8/8/8/R5K1 w - - 0 1", "Ra8#", "a1a8"),
        ("6k1/5ppp/8/8/8/8/8/R5K1 w - - 0 1", "O-O-O ", None),
        ("8/P6k/8/8/8/8/8/K7 w - - 0 1", "a8=Q ", "a7a8q"),
        ("8/P6k/8/8/8/8/8/K7 w - - 0 1", "a8 ", None),
        ("4k3/8/8/8/8/8/8/R3K2R w KQ - 0 1", "O-O+ ", "e1g1"),
        ("4k3/8/8/8/8/8/8/R3K2R w KQ - 0 1", "O-O-O ", "e1c1"),
    ],
)
def test_what_counts_as_a_legal_move(fen: str, text: str, move: str | None) -> None:
    found = move_written(chess.Board(fen), text)
    assert (None if found is None else found.uci()) == move


def test_characters_by_hand() -> None:
    """A model that always writes `e4 `: legal at the start only, where it is also the move of the game."""

    def e4(text: str) -> str:
        written_so_far = text[max(text.rfind("."), text.rfind(" ")) + 1 :]
        return {"": "e", "e": "4"}.get(written_so_far, " ")

    # Five words, of which the last may be cut off: the places are before 1.e4, e5, 2.Nf3 and Nc6.
    ((first, *others),) = characters_asked(Writer(e4), [";1.e4 e5 2.Nf3 Nc6 3.B"])
    assert first == (True, True, None) and others == [(False, False, None)] * 3
    # A model that writes the game itself is right everywhere.
    game = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Bxc6 dxc6 5.O-O f6 6.d4"
    (answers,) = characters_asked(Writer(lambda text: game[len(text)]), [game])
    assert answers == [(True, True, None)] * 4


def test_places_are_spread_over_moves_and_colours() -> None:
    asked: list[str] = []

    def note(text: str) -> str:
        asked.append(text)
        return " "

    games = [";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 Nf6 5.O"] * 8
    answers = list(characters_asked(Writer(note), games))
    assert [len(each) for each in answers] == [4] * 8 and not any(each.legal for game in answers for each in game)
    starts = {text: asked.count(text) for text in asked}
    # Eight whole moves, four places a game: every move is asked for in half of the games.
    assert len(starts) == 8 and set(starts.values()) == {4}
    assert ";1." in starts and ";1.e4 " in starts and ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 " in starts


def tiny(**settings: Any) -> GlassForCausalLM:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "ffn": "gelu", "init_std": 0.3}
    return GlassForCausalLM(GlassConfig(**{**sizes, **settings})).eval()


@pytest.fixture(scope="module")
def played_moves(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("moves") / "games"
    generate(out, games=30, seed=1, valid_share=0.8, workers=1, progress=False, tokens="moves")
    return Corpus.open(out)


def test_moves_equal_one_game_at_a_time(played_moves: Corpus) -> None:
    model = tiny(tokens="moves", vocab_size=len(MOVES), context=40)
    found = evaluate_legal_moves(model, played_moves, games=6)
    texts = choose_games(played_moves, None, 6)["test"]
    legal, mass = [], []
    for text in texts:
        words, board = text.split(), chess.Board()
        ids = torch.tensor([[MOVES.index(word) for word in words]])
        chances_NV = model(ids).logits[0].softmax(-1)
        shares = []
        for place, move in enumerate(words[1:]):
            names = [MOVES.index(each.uci()) for each in board.legal_moves]
            shares.append((int(chances_NV[place].argmax()) in names, chances_NV[place, names].sum().item()))
            board.push_uci(move)
        legal.append(np.mean([each[0] for each in shares]))
        mass.append(np.mean([each[1] for each in shares]))
    assert found.legal == pytest.approx(np.mean(legal)) and found.mass == pytest.approx(np.mean(mass), rel=1e-5)
    assert 0 < found.mass < 0.2 and found.positions == sum(len(text.split()) - 1 for text in texts)


def test_characters_are_written_as_generation_writes_them(tmp_path: Path) -> None:
    model = tiny(tokens="characters", vocab_size=32, context=256)
    prefixes = [";1.e4 e5 2.", ";1.d4 d5 2.", ";1.c4 c5 2."]
    for prefix, text in zip(prefixes, written(model, prefixes), strict=True):
        assert continuations(model, prefix, 8)[0].startswith(prefix + text) and 1 <= len(text) <= 8
    generate(tmp_path / "games", games=30, seed=1, valid_share=0.8, workers=1, progress=False)
    found = evaluate_legal_moves(model, Corpus.open(tmp_path / "games"), games=6)
    assert (found.games, found.positions, found.mass) == (6, 24, None) and 0 <= found.legal <= 1
    assert "legal mass" not in found.table() and "4 moves of each" in found.table()
    with pytest.raises(ValueError, match="the legal-move rate reads 256 characters"):
        evaluate_legal_moves(tiny(tokens="characters", vocab_size=32, context=64), Corpus.open(tmp_path / "games"))
