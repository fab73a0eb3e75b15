"""Games played again move by move with python-chess: legality, and the canonical name of each move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from glassmoe.data.sources import Skip

from .characters import require_chess

_PLAIN_SAN = re.compile(r"(?:([KQRBN])x?|(?:([a-h])x)?)([a-h][1-8])(?:=([QRBN]))?[+#]?")


def check_mark(board: Any) -> str:
    """`+`, `#` or nothing: what SAN adds to the move that led to this `chess.Board`."""
    if not board.is_check():
        return ""
    return "+" if any(board.generate_legal_moves()) else "#"


class _Shape(NamedTuple):
    """SAN that names no origin: where to, `file` of a capturing pawn, and both ways to write it."""

    piece: int
    target: int
    file: int | None
    promotion: int | None
    quiet: str
    capture: str


class Replayer:
    """Replays games with python-chess and rewrites each move as its canonical SAN.

    A move that only one piece can make geometrically, the usual case, is played at once and taken for illegal
    when it leaves the king in check; that is what legality adds to geometry. All other moves go the long way.
    """

    def __init__(self) -> None:
        self.chess = require_chess("Checking games")
        self._shapes: dict[str, _Shape | None] = {}

    def canonical(self, sans: Sequence[str]) -> list[str]:
        """Canonical SAN of each ply; raises Skip at the first move that is illegal or ambiguous."""
        return self._replay(sans)[0]

    def moves(self, sans: Sequence[str]) -> tuple[list[str], list[str]]:
        """Canonical SAN of each ply, and the same moves as UCI, castling as the king's move; raises Skip likewise."""
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
        # The same as board.was_into_check() and is_check(), at half the cost: this is the innermost loop.
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
        """What SAN without a hint of the origin says; None for castling and SAN with a hint."""
        chess = self.chess
        found = _PLAIN_SAN.fullmatch(san)
        if not found or (found[1] and found[4]):
            return None
        piece = chess.PIECE_SYMBOLS.index(found[1].lower()) if found[1] else chess.PAWN
        file = chess.FILE_NAMES.index(found[2]) if found[2] else None
        promotion = chess.PIECE_SYMBOLS.index(found[4].lower()) if found[4] else None
        quiet = capture = san.rstrip("+#")
        if found[1]:
            quiet, capture = found[1] + found[3], f"{found[1]}x{found[3]}"
        return _Shape(piece, chess.parse_square(found[3]), file, promotion, quiet, capture)

    def _only_origin(self, board: Any, shape: _Shape) -> int | None:
        """The one square from which a move of this shape can start; None when there is no such or several."""
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
