"""Legal-move rate: how often the move that a model finds likeliest is legal on the board.

The games are the test games of the boards measure. A model of moves is asked after every token of the first 40 of a
game that a move follows; its likeliest token counts, and the probability that it gives to all legal moves together. A
model of characters writes greedily from the place where a move begins until the move ends; a few places of each game
are asked, spread evenly over moves and colours, because writing is slower than reading. Shares are means over games.

Legend: G games, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glassmoe.console import bar
from glassmoe.data.corpus import Corpus
from glassmoe.measure.intervals import interval
from glassmoe.model import GlassForCausalLM
from glassmoe.results import Result, omitted

from . import moves
from .board_evaluation import TOKENS_READ, board_rows, check_games, choose_games
from .characters import decode, require_chess
from .tokens import CHARACTERS, MOVES

PLACES = 4
"""Places of each game at which a model of characters is asked for a move."""
LONGEST = 8
"""Characters of the longest move (`Qa1xb2+`) and the space that ends it."""
BATCH = 25
"""Games of a forward pass of a model of moves."""


@dataclass(frozen=True, kw_only=True)
class LegalMovesResult(Result):
    """How often the moves that a model finds likeliest are legal."""

    FORMATS: ClassVar = {"positions": ",", "+-": ".4f", "legal": ".4f", "legal mass": ".4f", "mass +-": ".4f"}

    tokens: str
    """What a token of the model is: `moves` or `characters`."""
    games: int
    """Games that were read."""
    positions: int
    """Positions at which the model was asked for a move."""
    legal: float
    """Share of the positions at which the model's likeliest move is legal."""
    half: float | None
    """Half of the 95% interval of `legal` over games; None for one game."""
    played: float
    """Share of the positions at which it is the move of the game."""
    mass: float | None = omitted()
    """Models of moves: mean probability of all legal moves together."""
    mass_half: float | None = omitted()
    """Half of the 95% interval of `mass` over games."""

    def rows(self) -> list[dict[str, Any]]:
        row: dict[str, Any] = {"positions": self.positions, "legal": self.legal, "+-": self.half}
        if self.mass is not None:
            row |= {"legal mass": self.mass, "mass +-": self.mass_half}
        return [row | {"move of the game": self.played}]

    def notes(self) -> list[str]:
        where = "every move" if self.tokens == MOVES.name else f"{PLACES} moves of each, written greedily"
        return [f"{self.games:,} validation games, {where}; +-: half of the 95% interval over games"]


class _Answer(NamedTuple):
    legal: bool
    played: bool
    mass: float | None = None


def evaluate_legal_moves(model: GlassForCausalLM, corpus: Corpus, *, games: int = 1000) -> LegalMovesResult:
    """How often the likeliest next move is legal, on `games` validation games. ValueError as for `evaluate_boards`,
    and when no game has room for a move."""
    check_games("the legal-move rate", model, corpus)
    texts = choose_games(corpus, None, games)["test"]
    ask = moves_asked if corpus.tokens == MOVES.name else characters_asked
    by_game = [answers for answers in ask(model, texts) if answers]
    if not by_game:
        raise ValueError(f"no game of {corpus.path} has a whole move to ask for; prepare more games")

    def mean(values: Sequence[Sequence[float]]) -> tuple[float, float | None]:
        return interval([float(np.mean(each)) for each in values])

    legal, half = mean([[each.legal for each in answers] for answers in by_game])
    mass: tuple[float | None, float | None] = (None, None)
    if by_game[0][0].mass is not None:
        mass = mean([[each.mass or 0.0 for each in answers] for answers in by_game])
    return LegalMovesResult(
        tokens=corpus.tokens,
        games=len(by_game),
        positions=sum(map(len, by_game)),
        legal=legal,
        half=half,
        played=mean([[each.played for each in answers] for answers in by_game])[0],
        mass=mass[0],
        mass_half=mass[1],
    )


@torch.no_grad()
def moves_asked(model: GlassForCausalLM, texts: Sequence[str]) -> Iterator[list[_Answer]]:
    """The answers of a model of moves in each game, after every token that a move follows."""
    chess = require_chess("Checking moves")
    number_of = {name: number for number, name in enumerate(moves.VOCABULARY)}
    device = next(model.parameters()).device
    progress = bar(len(texts), "games", "game")
    for start in range(0, len(texts), BATCH):
        tokens_GN, lengths_G, _ = board_rows(texts[start : start + BATCH])
        logits_GNV = model(torch.from_numpy(tokens_GN.astype(np.int64)).to(device)).logits.float()
        chances_GNV = logits_GNV.softmax(-1).cpu().numpy()
        for chances_NV, ids, length in zip(chances_GNV, tokens_GN.tolist(), lengths_G.tolist(), strict=True):
            board, answers = chess.Board(), []
            for place in range(length - 1):
                legal = [number_of[move.uci()] for move in board.legal_moves]
                likeliest = int(chances_NV[place].argmax())
                mass = float(chances_NV[place][legal].sum(dtype=np.float64))
                answers.append(_Answer(likeliest in legal, likeliest == ids[place + 1], mass))
                board.push_uci(moves.VOCABULARY[ids[place + 1]])
            progress.update()
            yield answers
    progress.close()


class _Question(NamedTuple):
    """A place of a game of characters at which a move begins."""

    game: int
    prefix: str
    board: Any
    played: Any


def characters_asked(model: GlassForCausalLM, texts: Sequence[str]) -> Iterator[list[_Answer]]:
    """The answers of a model of characters in each game, at `PLACES` places."""
    chess = require_chess("Checking moves")
    questions = [question for game, text in enumerate(texts) for question in _questions(chess, game, text)]
    by_length: dict[int, list[_Question]] = {}
    for question in questions:
        by_length.setdefault(len(question.prefix), []).append(question)
    answers: dict[int, list[_Answer]] = {}
    progress = bar(len(questions), "positions", "position")
    for _, group in sorted(by_length.items()):
        for question, text in zip(group, written(model, [each.prefix for each in group]), strict=True):
            move = move_written(question.board, text)
            answers.setdefault(question.game, []).append(_Answer(move is not None, move == question.played))
        progress.update(len(group))
    progress.close()
    for game in range(len(texts)):
        yield answers.get(game, [])


def _questions(chess: Any, game: int, text: str) -> Iterator[_Question]:
    """`PLACES` whole moves of a game with room to write them, evenly spread; each game begins at another."""
    starts, at = [], 0
    words = text.split(" ")
    for word in words[:-1]:  # the last one may be cut off
        starts.append(at + len(word) - len(_move_of(word)))
        at += len(word) + 1
    room = sum(start + LONGEST <= TOKENS_READ[CHARACTERS.name] for start in starts)
    chosen = sorted({(game + place * room // PLACES) % room for place in range(PLACES)}) if room else []
    board = chess.Board()
    for number, word in enumerate(words[: chosen[-1] + 1] if chosen else []):
        move = board.parse_san(_move_of(word))
        if number in chosen:
            yield _Question(game, text[: starts[number]], board.copy(stack=False), move)
        board.push(move)


def _move_of(word: str) -> str:
    """The move in a word such as `e5`, `1.e4` or, at the start of a game, `;1.e4`."""
    return word.rpartition(".")[2]


@torch.no_grad()
def written(model: GlassForCausalLM, prefixes: Sequence[str]) -> list[str]:
    """What a model of characters writes greedily after prefixes of equal length: `LONGEST` characters at most."""
    device = next(model.parameters()).device
    ids = np.stack([CHARACTERS.encode(prefix) for prefix in prefixes]).astype(np.int64)
    tokens_GN, cache = torch.from_numpy(ids).to(device), None
    columns: list[npt.NDArray[np.int64]] = []
    ended = np.zeros(len(prefixes), dtype=bool)
    while len(columns) < LONGEST and not ended.all():
        output = model(tokens_GN, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, tokens_GN = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        columns.append(tokens_GN[:, 0].cpu().numpy())
        ended |= np.isin(columns[-1], [CHARACTERS.vocabulary.index(end) for end in " ;#"])
    return [decode(row) for row in np.stack(columns, axis=1)]


def move_written(board: Any, text: str) -> Any:
    """The legal move with which a text begins, as a `chess.Move`; None where it is not legal, or does not end. A move
    ends with a space, a mate (`#`), or the `;` of another game."""
    ends = [place for place, character in enumerate(text) if character in " ;#"]
    if not ends:
        return None
    end = ends[0] + 1 if text[ends[0]] == "#" else ends[0]
    try:
        # python-chess reads `--` as a move that passes, which is false as a truth value.
        return board.parse_san(text[:end]) or None
    except ValueError:
        return None
