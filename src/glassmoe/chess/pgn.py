"""Games from files, in PGN (Portable Game Notation) or one a line, to a prepared corpus of characters or moves.

Comments, variations, annotation glyphs, clocks and results are dropped; the text of `characters.py` remains, or the
moves (`moves.py`). By default every game is replayed from the start position, and its moves are rewritten canonically;
`trust=True` only converts the text, many times faster. A game that cannot be used is counted with its reason and does
not stop the preparation.

Source: PGN specification and implementation guide (1994), sections 8.1 (tags) and 8.2 (movetext). There is one
difference: a header line ends an unterminated comment, so that a broken game cannot swallow the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from glassmoe.console import bar
from glassmoe.data.parallel import count_workers
from glassmoe.data.prepared import PreparedCorpus
from glassmoe.data.sources import STDIN, Chunk, Skip, discover
from glassmoe.data.tally import ChunkResult, Tally, gather
from glassmoe.data.tokens import Tokens
from glassmoe.data.writer import CorpusWriter

from .characters import MAX_PLIES, VOCABULARY, move_text, require_chess
from .game_files import KINDS, MAX_GAME_BYTES, GameFile
from .moves import encode_moves
from .replay import Replayer
from .tokens import CHARACTERS, MOVES, game_kind, pack_games

_DETAIL_CHARS = 80

_HEADERS = re.compile(rb'(?:^[ \t]*\[\w+[ \t]+"[^\n]*(?:\n|\Z))+', re.MULTILINE)
_START_TAGS = re.compile(rb'^[ \t]*\[(SetUp|FEN|Variant)[ \t]+"([^"\n]*)"', re.MULTILINE | re.IGNORECASE)
_START_BOARD = b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq"
_STANDARD = {b"", b"standard", b"chess", b"normal", b"from position"}

# Two patterns, because a search with a known first byte takes two thirds of the time, and escaped lines are rare.
_COMMENTS = re.compile(rb"\{[^}]*\}?|;[^\n]*")
_COMMENTS_AND_ESCAPES = re.compile(_COMMENTS.pattern + rb"|^%[^\n]*", re.MULTILINE)
_INNERMOST = re.compile(rb"\([^()]*\)")
_MAX_NESTING = 64
# A result, or a first move where games lack results, ends the game before it.
_RESULTS = {b"1-0", b"0-1", b"1/2-1/2", b"1/2", b"*"}
_GAME_END = re.compile(rb"(?<!\S)(?:1-0|0-1|1/2-1/2|1/2|\*)(?!\S)|(?<!\S)(?=1\.(?!\s*\.))")
_NOT_MOVES = re.compile(r"\$\d+|[!?]+|e\.p\.?|(?<![\w/-])\d+(?=\s|\Z)|(?:(?<![\w/-])\d+)?\.+", re.ASCII)
_ZERO_CASTLING = re.compile(r"(?<![\w-])0-0(-0)?(?![\w-])", re.ASCII)
_SAN = re.compile(r"(?:[KQRBN]?[a-h]?[1-8]?[x-]?[a-h][1-8](?:=?[QRBN])?|O-O(?:-O)?)[+#]?")


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
            sans = san_tokens(game)
            if len(sans) < min_plies:
                raise Skip("too few plies", f"{len(sans)} plies")
            if replayer and moves is not None:
                sans, played = replayer.moves(sans)
                moves.append(encode_moves(" ".join([";", *played])))
            elif replayer:
                sans = replayer.canonical(sans)
            texts.append(move_text(sans).encode("ascii"))
            numbers.append(seen - 1)
        except Skip as skip:
            skipped.append((seen - 1, skip.reason, skip.detail))
    return ChunkResult(chunk.file, pack_games(texts, moves), numbers, skipped, seen)


def _games(chunk: Chunk) -> Iterator[bytes | Skip]:
    """The movetext of each game, without comments and variations, or why it cannot be used."""
    # Byte-order marks, and no-break spaces of text that was copied from a web page.
    data = chunk.data.replace(b"\xef\xbb\xbf", b"").replace(b"\xc2\xa0", b" ")
    if chunk.kind == "lines":
        for line in data.split(b"\n"):
            if line.strip():
                yield _line(line.strip())
        return
    for headers, movetext in _header_blocks(data):
        try:
            _require_standard(headers)
            if len(movetext) > MAX_GAME_BYTES:
                raise Skip("too long", f"{len(movetext)} bytes without an end")
            yield from _split_games(b" ".join(_main_line(movetext).split()))
        except Skip as skip:
            yield skip


def _split_games(text: bytes) -> list[bytes]:
    """The movetext of at least one game, without results. The words of `text` are one space apart."""
    head, _, last = text.rpartition(b" ")
    game = head if last in _RESULTS else text
    if not any(mark in game for mark in (b" 1.", b"1-0", b"0-1", b"1/2", b"*")):
        return [game]  # usually one game, perhaps with its result
    return [part for part in _GAME_END.split(text) if part.strip()] or [b""]


def _line(line: bytes) -> bytes | Skip:
    if len(line) > MAX_GAME_BYTES:
        return Skip("too long", f"{len(line)} bytes without an end")
    if not line.startswith(b";"):
        return Skip("not a line of chess text", "it should begin with ;1. but begins with " + _shown(line))
    return line[1:]


def _header_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The header lines of each game and the text after them; headers are b"" for movetext without them."""
    headers, begin, started = b"", 0, False
    for block in _HEADERS.finditer(data):
        between = data[begin : block.start()]
        if started and not between.strip() and not block[0].lstrip().startswith(b"[Event "):
            # A blank line within the headers of one game.
            headers += block[0]
        else:
            if started or between.strip():
                yield headers, between
            headers, started = block[0], True
        begin = block.end()
    if started or data[begin:].strip():
        yield headers, data[begin:]


def _require_standard(headers: bytes) -> None:
    set_up, fen = False, b""
    for tag, value in _START_TAGS.findall(headers):
        if tag.lower() == b"variant":
            if value.strip().lower() not in _STANDARD:
                raise Skip("variant", _shown(value))
        elif tag.lower() == b"fen":
            fen = value
        else:
            set_up = value.strip() == b"1"
    if (fen or set_up) and not b" ".join(fen.split()).startswith(_START_BOARD):
        raise Skip("set-up position", _shown(fen) or "SetUp without FEN")


def _main_line(movetext: bytes) -> bytes:
    if b"%" in movetext and (movetext.startswith(b"%") or b"\n%" in movetext):
        movetext = _COMMENTS_AND_ESCAPES.sub(b" ", movetext)
    elif b"{" in movetext or b";" in movetext:
        movetext = _COMMENTS.sub(b" ", movetext)
    depth = 0
    while b"(" in movetext or b")" in movetext:
        movetext, removed = _INNERMOST.subn(b" ", movetext)
        depth += 1
        if not removed or depth > _MAX_NESTING:
            raise Skip("unbalanced variation", _shown(movetext[movetext.find(b"(") :]))
    return movetext


def san_tokens(main_line: bytes) -> list[str]:
    """The SAN of each ply. Raises Skip for text that is not a list of moves."""
    sans: list[str] = []
    for word in main_line.decode("latin-1").split():
        known = _known_words.get(word)
        sans += _read_word(word) if known is None else known
    if not sans:
        raise Skip("no moves")
    if len(sans) > MAX_PLIES:
        raise Skip("too long", f"{len(sans)} plies")
    for san in sans:
        if san not in _known_sans:
            if not _SAN.fullmatch(san):
                foreign = next((character for character in san if character not in VOCABULARY), None)
                if foreign is None:
                    raise Skip("not a move", san[:_DETAIL_CHARS])
                raise Skip("foreign characters", f"{foreign!r} in {san[:_DETAIL_CHARS]!r}")
            _known_sans.add(san)
    return sans


def _read_word(word: str) -> list[str]:
    """A word without move numbers and annotation: usually a move, or nothing."""
    moves = _NOT_MOVES.sub(" ", word)
    if "0-0" in moves:
        moves = _ZERO_CASTLING.sub(lambda match: "O-O-O" if match[1] else "O-O", moves)
    parts = moves.split()
    if len(_known_words) < _MAX_KNOWN_WORDS:
        _known_words[word] = parts
    return parts


# At most a few ten thousand strings match the pattern, so this cannot grow without bound.
_known_sans: set[str] = set()
# Words of a file -> moves. Words repeat, and reading each word once takes a third of the time.
_known_words: dict[str, list[str]] = {}
_MAX_KNOWN_WORDS = 100_000


def _shown(raw: bytes) -> str:
    try:
        text = raw[: 2 * _DETAIL_CHARS].decode("utf-8")
    except UnicodeDecodeError:
        text = raw[: 2 * _DETAIL_CHARS].decode("latin-1")
    # Control characters would write to the reader's terminal.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.strip()[:_DETAIL_CHARS])
