"""Chess as a domain: what `data/domains.py` asks of one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glassmoe.data.domains import Domain
from glassmoe.data.tokens import TokenKind

from .characters import require_chess
from .tokens import KINDS, MOVES


def prepare_command(tokens: str | None) -> str:
    """The command that prepares games of these tokens."""
    return "glassmoe data chess GAMES.pgn" + (f" --tokens {MOVES.name}" if tokens == MOVES.name else "")


def synthesize(out: Path, *, count: int, seed: int, tokens: str) -> None:
    """Plays `count` synthetic games into the folder `out`."""
    from .selfplay import generate

    generate(out, games=count, seed=seed, overwrite=True, tokens=tokens)


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """How the games of a corpus were checked, and how many duplicates were dropped."""
    checked = "every move checked legal" if manifest["checked"] else "moves not checked (--trust)"
    return [f"{checked}; {manifest['duplicates']:,} duplicates left out"]


def first_moves(kind: TokenKind, prompt: str, texts: Sequence[str]) -> tuple[list[str], float]:
    """The first move that each text writes after the prompt, and the share of these moves that are legal there.

    A word that is not a move stays as it is, and "" stands for a text that writes nothing. A move that the prompt has
    begun counts as written. ValueError when the prompt's own moves are not legal.
    """
    chess = require_chess("Reading moves")
    board, before = chess.Board(), _words(prompt, kind)
    if before and not prompt[-1].isspace() and not prompt.endswith((".", ";")) and kind is not MOVES:
        before = before[:-1]
    push = board.push_uci if kind is MOVES else board.push_san
    for move in before:
        try:
            push(move)
        except ValueError:
            raise ValueError(
                f"move {move!r} of the prompt is not legal after the moves before it; pass a legal game"
            ) from None
    parse = board.parse_uci if kind is MOVES else board.parse_san
    moves, legal = [], 0
    for text in texts:
        written = _words(text, kind)[len(before) : len(before) + 1]
        # A `;` begins the next game.
        moves.append(written[0].partition(";")[0] if written else "")
        try:
            # python-chess reads `--` and `0000` as a move that passes, which is false as a truth value.
            legal += bool(parse(moves[-1]))
        except ValueError:
            continue
    return moves, legal / len(texts)


def _words(text: str, kind: TokenKind) -> list[str]:
    """The moves of a game as written, without its start and the numbers."""
    text = text.removeprefix(";")
    return text.split() if kind is MOVES else re.sub(r"\d+\.", " ", text).split()


CHESS = Domain(
    name="chess",
    corpus="games",
    unit="games",
    prepare=prepare_command,
    kinds=KINDS,
    synthesize=synthesize,
    notes=notes,
    first_steps=first_moves,
)
