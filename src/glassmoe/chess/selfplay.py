"""Synthetic games: a seeded player with simple habits, for trying the package without a file of games.

The games are legal but not good. They are skewed, so that a small model finds structure early, as openings give
structure to real games: each side draws one of six schools. A school has a set-up of three moves, which it plays first
and then leaves, and a favourite piece, which it moves afterwards; so the board predicts the moves. Pieces are
developed, kings castle, captures that win material are preferred, and attacked pieces move away. Games vary enough that
a model cannot memorise them. The manifest of such a corpus has `"synthetic": true`.

Each game has its own random stream, named by (seed, number of the game), so that the result does not depend on the
number of workers.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from glassmoe.console import bar
from glassmoe.data.parallel import ordered_map
from glassmoe.data.prepared import PreparedCorpus
from glassmoe.data.writer import CorpusWriter, PackedSequences

from .characters import move_text, require_chess
from .moves import encode_moves
from .replay import check_mark
from .tokens import CHARACTERS, MOVES, game_kind, pack_games

_GAMES_A_BATCH = 50
_OPENING_PLIES = 20

# Weights are relative: a plain move of a piece has 1. Values in pawns, by python-chess's piece types 1 to 6.
_VALUE = (0, 1, 3, 3, 5, 9, 20)
_CASTLING = 80.0
_QUEENING = 60.0
_TRADE = 0.1
_CAPTURE = 0.5
_CAPTURE_PER_PAWN = 0.5
_RECAPTURE = 20.0
_RESCUE = 12.0
_HANGING = 0.02
_DEVELOPMENT = 8.0
_RIM = 0.1
_EARLY_QUEEN_OR_ROOK = 0.2
_KING_WALK = 0.15
# White's schools: the moves of the set-up, from square to square, and the favourite, one of python-chess's piece
# types. Black's are the same, mirrored.
_SCHOOLS = (
    ("h2h4 a2a4 e2e4", 1),
    ("c2c3 d1c2 a2a3", 2),
    ("b1c3 g1h3 e2e3", 3),
    ("g2g3 f1g2 h2h3", 4),
    ("d2d3 f2f3 c1e3", 5),
    ("b2b3 c1b2 f2f4", 6),
)
_SETUP = 400.0
_SETTLED = 0.01
_OTHER_SCHOOL = 0.01
_FAVOURITE = 25.0
# Pawn moves in the opening, by file: the centre first.
_OPENING_FILE = (0.2, 0.3, 2.0, 8.0, 12.0, 0.2, 0.5, 0.2)
_DOUBLE_STEP = 2.0

_NOT_A_FILE = 0xFEFEFEFEFEFEFEFE
_NOT_H_FILE = 0x7F7F7F7F7F7F7F7F
_BACK_RANKS = 0xFF000000000000FF


def generate(
    out: str | Path,
    *,
    games: int,
    seed: int = 0,
    max_chars: int = 256,
    workers: int | None = None,
    valid_share: float = 0.1,
    progress: bool = True,
    overwrite: bool = False,
    tokens: str = CHARACTERS.name,
) -> PreparedCorpus:
    """Prepares the corpus `out` of synthetic games.

    A game stops with the move that takes its text to `max_chars` characters or more, or when it is over. The games are
    the same for `tokens` characters and moves. Equal games are kept once, so there may be slightly fewer than `games`;
    the manifest counts the duplicates.

    ValueError for `games` or `max_chars` that are too small, an `out` that already holds a corpus, unknown `tokens`,
    and when python-chess is missing.
    """
    kind = game_kind(tokens)
    if games < 1:
        raise ValueError(f"games is {games}; expected at least 1 game to play")
    if max_chars < 5:
        raise ValueError(f"max_chars is {max_chars}; expected at least 5, the length of a first move (;1.e4)")
    require_chess("Making synthetic games")
    batches = (range(begin, min(begin + _GAMES_A_BATCH, games)) for begin in range(0, games, _GAMES_A_BATCH))
    play = partial(_play_batch, seed=seed, max_chars=max_chars, tokens=tokens)
    new = CorpusWriter(out, kind, valid_share=valid_share, overwrite=overwrite)
    with new as writer, bar(games, "playing games", " games", show=progress, lines=True) as shown:
        for played in ordered_map(play, batches, workers):
            writer.add(played)
            shown.update(len(played.lengths))
        return writer.finish(
            {
                "kind": "chess",
                "checked": True,
                "synthetic": True,
                "seed": seed,
                "max_chars": max_chars,
                "skipped": {},
                "inputs": [],
            }
        )


def _play_batch(numbers: range, *, seed: int, max_chars: int, tokens: str) -> PackedSequences:
    played = [_play(seed, number, max_chars) for number in numbers]
    moves = [encode_moves("; " + " ".join(ucis)) for _, ucis in played] if tokens == MOVES.name else None
    return pack_games([move_text(sans).encode("ascii") for sans, _ in played], moves)


def play_game(seed: int, number: int, max_chars: int = 256) -> str:
    """The text of synthetic game `number` of `seed`, `;1.e4 e5 ...`."""
    return move_text(_play(seed, number, max_chars)[0])


def _play(seed: int, number: int, max_chars: int) -> tuple[list[str], list[str]]:
    """SAN and UCI of each ply of a game."""
    chess = require_chess("Making synthetic games")
    rng = random.Random(f"{seed}:{number}")
    board = chess.Board()
    schools = [_School(rng.randrange(len(_SCHOOLS)), white) for white in (False, True)]
    sans: list[str] = []
    characters = 0
    while characters < max_chars and board.halfmove_clock < 100 and not board.is_insufficient_material():
        san = _play_move(chess, board, rng, schools[board.turn])
        if san is None:
            break
        # The separator before the move, and White's number with its dot.
        characters += 1 + len(san) + (0 if len(sans) % 2 else len(str(len(sans) // 2 + 1)) + 1)
        sans.append(san)
    return sans, [move.uci() for move in board.move_stack]


class _School:
    """The plan of one side: the moves of its set-up that it has not played yet, the squares where those men stay, the
    moves that only other schools play, and its favourite piece."""

    def __init__(self, number: int, white: bool) -> None:
        moves = [_squares(text, white) for text, _ in _SCHOOLS]
        self.pending = set(moves[number])
        self.settled = sum(1 << target for _, target in self.pending)
        self.others = {move for school in moves for move in school} - self.pending
        self.favourite = _SCHOOLS[number][1]


def _squares(text: str, white: bool) -> list[tuple[int, int]]:
    """Moves such as `d2d4 c1f4` as (from, to), squares numbered from a1 = 0 to h8 = 63; mirrored for Black."""
    numbers = [ord(word[i]) - ord("a") + 8 * (int(word[i + 1]) - 1) for word in text.split() for i in (0, 2)]
    mirrored = numbers if white else [number ^ 56 for number in numbers]
    return list(zip(mirrored[::2], mirrored[1::2], strict=True))


def _play_move(chess: Any, board: Any, rng: random.Random, school: _School) -> str | None:
    """Chooses and plays a move. Returns its canonical SAN, or None when there is no legal move."""
    moves = list(board.generate_pseudo_legal_moves())
    weights = _weights(chess, board, moves, school)
    while moves:
        sums = list(accumulate(weights))
        point = rng.random() * sums[-1]
        chosen = next(index for index, reached in enumerate(sums) if point < reached)
        move = moves[chosen]
        text = _san_without_mark(chess, board, move, moves)
        board.push(move)
        if not board.was_into_check():
            school.pending.discard((move.from_square, move.to_square))
            return text + check_mark(board)
        board.pop()
        del moves[chosen], weights[chosen]
    return None


def _weights(chess: Any, board: Any, moves: list[Any], school: _School) -> list[float]:
    """Weight of each pseudo-legal move in the choice of the player; all are positive."""
    turn = board.turn
    opening = len(board.move_stack) < _OPENING_PLIES
    threats, pawn_threats, _ = _attacks(board, not turn)
    _, _, covered_twice = _attacks(board, turn)
    undefended = threats & ~covered_twice
    last = board.peek().to_square if board.move_stack else -1
    piece_type_at = board.piece_type_at
    weights = []
    for move in moves:
        origin, target = move.from_square, move.to_square
        piece = piece_type_at(origin)
        victim = piece_type_at(target) or 0
        weight = 1.0
        if piece == chess.PAWN:
            if opening:
                weight = _OPENING_FILE[origin & 7] * (_DOUBLE_STEP if abs(origin - target) == 16 else 1.0)
            if move.promotion:
                weight = _QUEENING if move.promotion == chess.QUEEN else 1.0
        elif piece == chess.KING:
            weight = _CASTLING if abs(origin - target) == 2 else _KING_WALK
        elif opening:
            if piece > chess.BISHOP:
                weight = _EARLY_QUEEN_OR_ROOK
            elif _BACK_RANKS >> origin & 1:
                weight = _DEVELOPMENT
            if piece == chess.KNIGHT and target & 7 in (0, 7):
                weight *= _RIM
        if school.settled >> origin & 1:
            weight *= _SETTLED
        elif piece == school.favourite:
            weight = max(weight, _FAVOURITE)
        if (origin, target) in school.pending:
            weight = _SETUP
        elif (origin, target) in school.others:
            weight *= _OTHER_SCHOOL
        value = _VALUE[piece]
        if victim:
            gain = _VALUE[victim] - (value if threats >> target & 1 else 0)
            weight *= _TRADE if gain <= 0 else _CAPTURE + _CAPTURE_PER_PAWN * gain
            if target == last:
                weight *= _RECAPTURE
        if value > 1 and value < 20:
            if value > _VALUE[victim] and (pawn_threats | undefended) >> target & 1:
                weight *= _HANGING
            if pawn_threats >> origin & 1:
                weight *= _RESCUE
        weights.append(weight)
    return weights


def _attacks(board: Any, colour: bool) -> tuple[int, int, int]:
    """Masks of the squares that a side attacks, that its pawns attack, and that two or more of its men attack."""
    own = board.occupied_co[colour]
    pawns = own & board.pawns
    if colour:
        left, right = (pawns & _NOT_A_FILE) << 7, (pawns & _NOT_H_FILE) << 9
    else:
        left, right = (pawns & _NOT_A_FILE) >> 9, (pawns & _NOT_H_FILE) >> 7
    by_pawns = left | right
    once, twice = by_pawns, left & right
    pieces = own & ~pawns
    while pieces:
        square = pieces.bit_length() - 1
        reach = board.attacks_mask(square)
        twice |= once & reach
        once |= reach
        pieces ^= 1 << square
    return once, by_pawns, twice


def _san_without_mark(chess: Any, board: Any, move: Any, moves: list[Any]) -> str:
    """SAN without `+` and `#`. `moves`: the pseudo-legal moves that are not known to be illegal."""
    origin, target = move.from_square, move.to_square
    piece = board.piece_type_at(origin)
    if piece == chess.KING and abs(origin - target) == 2:
        return "O-O" if target > origin else "O-O-O"
    name: str = chess.SQUARE_NAMES[target]
    here: str = chess.SQUARE_NAMES[origin]
    if piece == chess.PAWN:
        # A pawn changes its file exactly when it captures, en passant included.
        text = name if (origin - target) % 8 == 0 else f"{here[0]}x{name}"
        return text + ("=" + chess.piece_symbol(move.promotion).upper() if move.promotion else "")
    rivals = [
        chess.SQUARE_NAMES[other.from_square]
        for other in moves
        if other.to_square == target
        and other.from_square != origin
        and board.piece_type_at(other.from_square) == piece
        and board.is_legal(other)
    ]
    hint = ""
    if rivals:
        file_taken = any(rival[0] == here[0] for rival in rivals)
        rank_taken = any(rival[1] == here[1] for rival in rivals)
        hint = here if file_taken and rank_taken else here[1] if file_taken else here[0]
    capture = "x" if board.occupied >> target & 1 else ""
    return str(chess.piece_symbol(piece)).upper() + hint + capture + name
