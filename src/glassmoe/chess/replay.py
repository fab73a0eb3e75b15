"""Replaying games with python-chess, which checks legality and gives each move its canonical name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from glassmoe.data.sources import Skip

from .characters import require_chess

_PLAIN_SAN = re.compile(r"(?:([KQRBN])x?|(?:([a-h])x)?)([a-h][1-8])(?:=([QRBN]))?[+#]?")


def check_mark(board: Any) -> str:
    """The mark that SAN adds to the move that led to this `chess.Board`: `+`, `#` or nothing."""
    if not board.is_check():
        return ""
    return "+" if any(board.generate_legal_moves()) else "#"


class _Shape(NamedTuple):
    """SAN without an origin: the target square, the `file` of a capturing pawn, and both spellings."""

    piece: int
    target: int
    file: int | None
    promotion: int | None
    quiet: str
    capture: str


class Replayer:
    """Replays games with python-chess and rewrites each move as its canonical SAN.

    Usually only one piece can make a move geometrically. Then the move is played at once, and it is illegal when it
    leaves the king in check, which is all that legality adds to geometry. All other moves are parsed by python-chess.
    """

    def __init__(self) -> None:
        self.chess = require_chess("Checking games")
        self._shapes: dict[str, _Shape | None] = {}

    def canonical(self, sans: Sequence[str]) -> list[str]:
        """Canonical SAN of each ply. Raises Skip at the first move that is illegal or ambiguous."""
        return self._replay(sans)[0]

    def moves(self, sans: Sequence[str]) -> tuple[list[str], list[str]]:
        """Canonical SAN of each ply, and the same moves in UCI, where castling is a king's move. Raises Skip
        likewise."""
        texts, board = self._replay(sans)
        return texts, [move.uci() for move in board.move_stack]

    def _replay(self, sans: Sequence[str]) -> tuple[list[str], Any]:
        board = self.chess.Board()
        return [self._play(board, san, ply) for ply, san in enumerate(sans, start=1)], board

    def _play(self, board: Any, san: str, ply: int) -> str:
        try:
            shape = self._shapes[san]
        except KeyError:
            shape = self._shapes[san] = self._shape(san)
        origin = None if shape is None else self._only_origin(board, shape)
        if shape is None or origin is None:
            return self._play_slowly(board, san, ply)
        text = shape.capture if board.occupied >> shape.target & 1 else shape.quiet
        board.push(self.chess.Move(origin, shape.target, shape.promotion))
        turn = board.turn
        men = board.occupied_co
        # The same as board.was_into_check() and is_check() at half the cost, because this is the innermost loop.
        if board.attackers_mask(turn, (board.kings & men[not turn]).bit_length() - 1):
            raise Skip("illegal move", f"{san} at ply {ply}")
        if board.attackers_mask(not turn, (board.kings & men[turn]).bit_length() - 1):
            return text + check_mark(board)
        return text

    def _play_slowly(self, board: Any, san: str, ply: int) -> str:
        try:
            move = board.parse_san(san)
        except ValueError as error:
            ambiguous = isinstance(error, self.chess.AmbiguousMoveError)
            raise Skip("ambiguous move" if ambiguous else "illegal move", f"{san} at ply {ply}") from None
        text: str = board.san(move)
        board.push(move)
        return text

    def _shape(self, san: str) -> _Shape | None:
        """The shape of SAN that does not name the origin; None for castling and for SAN that does."""
        chess = self.chess
        match = _PLAIN_SAN.fullmatch(san)
        if not match or (match[1] and match[4]):
            return None
        piece = chess.PIECE_SYMBOLS.index(match[1].lower()) if match[1] else chess.PAWN
        file = chess.FILE_NAMES.index(match[2]) if match[2] else None
        promotion = chess.PIECE_SYMBOLS.index(match[4].lower()) if match[4] else None
        quiet = capture = san.rstrip("+#")
        if match[1]:
            quiet, capture = match[1] + match[3], f"{match[1]}x{match[3]}"
        return _Shape(piece, chess.parse_square(match[3]), file, promotion, quiet, capture)

    def _only_origin(self, board: Any, shape: _Shape) -> int | None:
        """The only square from which a move of this shape can start; None when there is none or more than one."""
        chess = self.chess
        piece, target = shape.piece, shape.target
        own = board.occupied_co[board.turn]
        if own >> target & 1:
            return None
        if piece == chess.PAWN:
            return self._pawn_origin(board, target, shape.file, shape.promotion)
        candidates: int
        if piece == chess.KNIGHT:
            candidates = chess.BB_KNIGHT_ATTACKS[target] & board.knights & own
        elif piece == chess.KING:
            candidates = chess.BB_KING_ATTACKS[target] & board.kings & own
        else:
            candidates = 0
            movers = own & board.pieces_mask(piece, board.turn)
            occupied = board.occupied
            if piece != chess.ROOK:
                candidates = chess.BB_DIAG_ATTACKS[target][chess.BB_DIAG_MASKS[target] & occupied]
            if piece != chess.BISHOP:
                candidates |= chess.BB_RANK_ATTACKS[target][chess.BB_RANK_MASKS[target] & occupied]
                candidates |= chess.BB_FILE_ATTACKS[target][chess.BB_FILE_MASKS[target] & occupied]
            candidates &= movers
        if not candidates or candidates & (candidates - 1):
            return None
        return candidates.bit_length() - 1

    def _pawn_origin(self, board: Any, target: int, file: int | None, promotion: int | None) -> int | None:
        forward = 8 if board.turn else -8
        rank = target >> 3 if board.turn else 7 - (target >> 3)
        if (rank == 7) != (promotion is not None) or rank < 2:
            return None
        pawns = board.pawns & board.occupied_co[board.turn]
        behind = target - forward
        if file is not None:
            origin = (behind & ~7) + file
            enemy = board.occupied_co[not board.turn] >> target & 1 or target == board.ep_square
            return origin if abs(file - (target & 7)) == 1 and pawns >> origin & 1 and enemy else None
        if board.occupied >> target & 1:
            return None
        if pawns >> behind & 1:
            return behind
        if rank == 3 and not board.occupied >> behind & 1 and pawns >> (behind - forward) & 1:
            return behind - forward
        return None
