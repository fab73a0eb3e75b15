"""One chess position: the attack maps, pins and legal destinations that many board properties share.

python-chess supplies rules and tables; this works on its 64-bit boards (bit 0 is a1, bit 63 is h8) without
making a move object per move, which is what lets tens of thousands of boards be labelled in seconds. python-chess
(GPL-3.0+, the optional extra `chess`) is imported only when a position is read.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from .characters import require_chess

if TYPE_CHECKING:
    import chess

ALL_SQUARES = (1 << 64) - 1
PAWN, KNIGHT, BISHOP, ROOK, QUEEN, KING = range(1, 7)


class Position:
    """One board with what several properties share (attack maps, pins, legal destinations), computed once."""

    def __init__(self, board: chess.Board) -> None:
        self.board: Any = board
        self.chess = require_chess("Reading boards")
        self.turn = bool(board.turn)
        self.us = int(board.occupied_co[board.turn])
        self.them = int(board.occupied_co[not board.turn])
        self.kinds = (0, board.pawns, board.knights, board.bishops, board.rooks, board.queens, board.kings)

    def squares(self, mask: int) -> list[int]:
        """Square numbers of the set bits, ascending."""
        squares = []
        while mask:
            low = mask & -mask
            squares.append(low.bit_length() - 1)
            mask ^= low
        return squares

    @cached_property
    def attacked_by_white(self) -> int:
        return self._attacked(self.board.occupied_co[True])

    @cached_property
    def attacked_by_black(self) -> int:
        return self._attacked(self.board.occupied_co[False])

    def _attacked(self, pieces: int) -> int:
        attacks_mask, attacked = self.board.attacks_mask, 0
        for square in self.squares(pieces):
            attacked |= attacks_mask(square)
        return attacked

    @cached_property
    def checkers(self) -> int:
        king = self.board.king(self.turn)
        return 0 if king is None else int(self.board.attackers_mask(not self.turn, king))

    @cached_property
    def our_pins(self) -> dict[int, int]:
        return self.blockers(self.board.king(self.turn), self.them, self.us)

    @cached_property
    def their_pins(self) -> dict[int, int]:
        return self.blockers(self.board.king(not self.turn), self.us, self.them)

    def blockers(self, king: int | None, sliders: int, movable: int) -> dict[int, int]:
        """Square of each `movable` piece that is alone between `king` and one of `sliders` -> their line."""
        if king is None:
            return {}
        chess, board = self.chess, self.board
        straight = chess.BB_RANK_ATTACKS[king][0] | chess.BB_FILE_ATTACKS[king][0]
        diagonal = chess.BB_DIAG_ATTACKS[king][0]
        aimed = straight & (board.rooks | board.queens) | diagonal & (board.bishops | board.queens)
        lines = {}
        for slider in self.squares(aimed & sliders):
            between = chess.between(slider, king) & board.occupied
            if between and between & (between - 1) == 0 and between & movable:
                lines[between.bit_length() - 1] = chess.ray(slider, king)
        return lines

    @cached_property
    def pseudo_targets(self) -> list[tuple[int, int, int]]:
        """(piece kind, from square, destinations) of our pieces, without castling and en passant."""
        board, free = self.board, ~self.board.occupied & ALL_SQUARES
        targets = []
        for kind in (KNIGHT, BISHOP, ROOK, QUEEN, KING):
            for square in self.squares(self.us & self.kinds[kind]):
                targets.append((kind, square, board.attacks_mask(square) & ~self.us))
        captures = self.chess.BB_PAWN_ATTACKS[self.turn]
        for square in self.squares(self.us & board.pawns):
            bit = 1 << square
            single = (bit << 8 if self.turn else bit >> 8) & free
            double = 0
            if single and bit & (0xFF00 if self.turn else 0xFF << 48):
                double = (bit << 16 if self.turn else bit >> 16) & free
            targets.append((PAWN, square, single | double | captures[square] & self.them))
        return targets

    @cached_property
    def castling(self) -> list[chess.Move]:
        # python-chess's generator already refuses castling out of, through and into check.
        return list(self.board.generate_castling_moves()) if self.board.castling_rights else []

    @cached_property
    def legal_en_passant(self) -> list[chess.Move]:
        return list(self.board.generate_legal_ep()) if self.board.ep_square is not None else []

    @cached_property
    def legal_targets(self) -> list[tuple[int, int, int]]:
        """(piece kind, from square, legal destinations); castling and en passant are entries of their own."""
        chess = self.chess
        king = self.board.king(self.turn)
        danger = self.attacked_by_black if self.turn else self.attacked_by_white
        allowed = ALL_SQUARES
        if self.checkers:
            sliders = self.checkers & (self.board.bishops | self.board.rooks | self.board.queens)
            for checker in self.squares(sliders):
                # The king shields the squares behind it only until it moves.
                danger |= chess.ray(king, checker) & ~(1 << checker)
            single = self.checkers & (self.checkers - 1) == 0
            checker = self.checkers.bit_length() - 1
            allowed = chess.between(king, checker) | self.checkers if single else 0
        targets = []
        for kind, square, mask in self.pseudo_targets:
            unpinned = allowed & self.our_pins.get(square, ALL_SQUARES)
            legal = mask & (~danger if square == king else unpinned)
            if legal:
                targets.append((kind, square, legal))
        targets += [(KING, move.from_square, 1 << move.to_square) for move in self.castling]
        targets += [(PAWN, move.from_square, 1 << move.to_square) for move in self.legal_en_passant]
        return targets

    @cached_property
    def can_check(self) -> bool:
        """Some legal move gives check: to a checking square, by uncovering a line, or one of the odd
        moves."""
        board, chess = self.board, self.chess
        king = board.king(not self.turn)
        if king is None:
            return False
        if board.attackers_mask(self.turn, king):
            # Such positions do not occur in play, and the shortcuts below exclude them.
            return any(board.gives_check(move) for move in board.legal_moves)
        occupied = board.occupied
        diagonal = chess.BB_DIAG_ATTACKS[king][chess.BB_DIAG_MASKS[king] & occupied]
        straight = chess.BB_RANK_ATTACKS[king][chess.BB_RANK_MASKS[king] & occupied]
        straight |= chess.BB_FILE_ATTACKS[king][chess.BB_FILE_MASKS[king] & occupied]
        pawn = chess.BB_PAWN_ATTACKS[not self.turn][king]
        checking = (0, pawn, chess.BB_KNIGHT_ATTACKS[king], diagonal, straight, diagonal | straight, 0)
        uncovering = self.blockers(king, self.us, self.us)
        for kind, square, mask in self.legal_targets:
            if mask & checking[kind] or mask & ~uncovering.get(square, ALL_SQUARES):
                return True
        last_rank = 0xFF << 56 if self.turn else 0xFF
        odd = [*self.castling, *self.legal_en_passant]
        for kind, square, mask in self.legal_targets:
            if kind == PAWN and mask & last_rank:
                ends = self.squares(mask & last_rank)
                odd += [chess.Move(square, end, piece) for end in ends for piece in (QUEEN, KNIGHT)]
        return any(board.gives_check(move) for move in odd)
