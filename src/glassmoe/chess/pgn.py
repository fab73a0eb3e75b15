"""Games from files, in PGN (Portable Game Notation) or one a line, to a prepared corpus of characters or moves.

`headers.py` reads the tags, `movetext.py` the moves; the text of `characters.py` remains, or the moves (`moves.py`). By
default every game is replayed from the start position, and its moves are rewritten canonically; `trust=True` only
converts the text, many times faster. A game that cannot be used is counted with its reason and does not stop the
preparation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from glassmoe.console import bar
from glassmoe.data.parallel import count_workers
from glassmoe.data.prepared import PreparedCorpus
from glassmoe.data.sources import STDIN, Chunk, Skip, discover
from glassmoe.data.tally import ChunkResult, Tally, gather
from glassmoe.data.tokens import Tokens
from glassmoe.data.writer import CorpusWriter

from .characters import move_text, require_chess
from .game_files import KINDS, MAX_GAME_BYTES, GameFile
from .headers import header_blocks, require_standard, shown
from .moves import encode_moves
from .movetext import needs_board, plain_text, san_tokens, split_games
from .replay import Replayer
from .tokens import CHARACTERS, MOVES, game_kind, pack_games


def prepare_chess(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    trust: bool = False,
    workers: int | None = None,
    valid_share: float = 0.01,
    max_games: int | None = None,
    min_plies: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    tokens: str = CHARACTERS.name,
) -> PreparedCorpus:
    """Prepares the corpus `out` from files of games.

    inputs: .pgn files and .txt files with one `;1.e4 e5 ...` a line, plain or as .zst, .bz2 or .gz, folders of them,
    and `-` for standard input.
    trust: skip the legality check, which needs python-chess.
    workers: number of processes (None: one a CPU); the result does not depend on it.
    max_games: stop after this many usable games, counted before duplicates are removed.
    min_plies: skip games with fewer plies.
    tokens: what one token is, `characters` or `moves`; both have the same games in the same order and splits.

    ValueError for an input that is missing or of an unknown kind, for an `out` that already holds a corpus, for moves
    with `trust`, and when no game can be used.
    """
    if trust and tokens == MOVES.name:
        raise ValueError(
            "games as moves (--tokens moves) have to be replayed, which trust=True (--trust) leaves out; "
            "drop one of the two"
        )
    kind = game_kind(tokens)
    if max_games is not None and max_games < 1:
        raise ValueError(f"max_games is {max_games}; expected at least 1 game, or None for all")
    workers = count_workers(workers)
    names, ignored = discover(inputs, KINDS)
    if not trust:
        require_chess("Checking games (anything but trust=True, --trust)")
    new = CorpusWriter(out, kind, valid_share=valid_share, overwrite=overwrite)
    size = None if STDIN in names else sum(Path(name).stat().st_size for name in names)
    with new as writer, bar(size, "preparing games", "B", show=progress, lines=True, unit_scale=True) as shown:
        sources = [GameFile(name, number, shown.update) for number, name in enumerate(names)]
        tally = Tally(names, "game")
        read = partial(read_chunk, checked=not trust, min_plies=min_plies, tokens=tokens)
        inputs_read = gather(writer, tally, sources, read, shown, workers, max_games)
        if not writer.count:
            raise ValueError(
                f"no usable game in {', '.join(names)}: {tally.summary()}; "
                "pass games of standard chess, as PGN or as lines ;1.e4 e5 2.Nf3"
            )
        return writer.finish(
            {
                "kind": "chess",
                "checked": not trust,
                "synthetic": False,
                "min_plies": min_plies,
                "max_games": max_games,
                "skipped": tally.skipped,
                "ignored_files": ignored,
                **inputs_read,
            }
        )


def read_chunk(chunk: Chunk, *, checked: bool, min_plies: int = 1, tokens: str = CHARACTERS.name) -> ChunkResult:
    """The usable games of a chunk as packed characters or moves; runs in a worker."""
    replayer = Replayer() if checked else None
    texts: list[bytes] = []
    moves: list[Tokens] | None = [] if tokens == MOVES.name else None
    numbers: list[int] = []
    skipped: list[tuple[int, str, str]] = []
    seen = 0
    for seen, game in enumerate(_games(chunk), start=1):
        try:
            if isinstance(game, Skip):
                raise game
            sans = san_tokens(game, checked)
            if len(sans) < min_plies:
                raise Skip("too few plies", f"{len(sans)} plies")
            if replayer and moves is not None:
                sans, played = replayer.moves(sans)
                moves.append(encode_moves(" ".join([";", *played])))
            elif replayer:
                sans = replayer.canonical(sans)
            elif needs_board(sans):
                sans = _named_pieces(sans)
            texts.append(move_text(sans).encode("ascii"))
            numbers.append(seen - 1)
        except Skip as skip:
            skipped.append((seen - 1, skip.reason, skip.detail))
    return ChunkResult(chunk.file, pack_games(texts, moves), numbers, skipped, seen)


@cache
def _board() -> Replayer | None:
    try:
        return Replayer()
    except ValueError:
        return None


def _named_pieces(sans: list[str]) -> list[str]:
    """The SAN of moves in coordinates, which only a board can tell, also where games are trusted. Raises Skip."""
    board = _board()
    if board is None:
        raise Skip("moves in coordinates", "only python-chess can tell the pieces, and it is not installed")
    return board.canonical(sans)


def _games(chunk: Chunk) -> Iterator[str | Skip]:
    """The main line of each game, without comments and variations, or why it cannot be used."""
    data = chunk.data.replace(b"\xef\xbb\xbf", b"")  # marks of files that were joined
    if chunk.kind == "lines":
        for line in data.split(b"\n"):
            if line.strip():
                yield _line(line.strip())
        return
    for tags, movetext in header_blocks(data):
        try:
            require_standard(tags)
            if len(movetext) > MAX_GAME_BYTES:
                raise Skip("too long", f"{len(movetext)} bytes without an end")
            yield from split_games(movetext)
        except Skip as skip:
            yield skip


def _line(line: bytes) -> str | Skip:
    if len(line) > MAX_GAME_BYTES:
        return Skip("too long", f"{len(line)} bytes without an end")
    if not line.startswith(b";"):
        return Skip("not a line of chess text", "it should begin with ;1. but begins with " + shown(line))
    return plain_text(line[1:])
