"""Files of games as chunks of whole games: PGN, or lines such as `;1.e4 e5 2.Nf3`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from glassmoe.data.sources import CHUNK_BYTES, Chunk, InputFile, kind_of_file, one_newline

from .headers import HEADER_LINE, has_moves, tags_of_line

KINDS = {".pgn": "pgn", ".txt": "lines"}
"""Format of a file of games, by its ending."""
MAX_GAME_BYTES = 1 << 20
"""A game, comments and all, is a few kilobytes; what has no end after this many bytes is not a game."""

# No mark of a game's beginning is longer, so this much is kept where a search goes on in the next block.
_LONGEST_MARK = 64


class GameFile(InputFile):
    """One input file of games."""

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of whole games, about half a megabyte each."""
        blocks = one_newline(self.text())
        head = b""
        for block in blocks:
            head += block
            if len(head.strip()) > 2:
                break
        kind = kind_of_file(self.name, KINDS) or ("lines" if re.match(rb"\s*;\s*1\.", head) else "pgn")
        buffer, skipping = head, False
        for block in blocks:
            buffer += block
            if skipping:
                start = _next_start(buffer, kind)
                buffer, skipping = (buffer[start:], False) if start else (buffer[-_LONGEST_MARK:], True)
            if skipping or len(buffer) < CHUNK_BYTES:
                continue
            cut = _last_start(buffer, kind)
            if cut:
                yield Chunk(self.number, kind, buffer[:cut])
                buffer = buffer[cut:]
            elif len(buffer) > 2 * MAX_GAME_BYTES:
                # A worker reports it as too long; what is still to come of it goes unread.
                yield Chunk(self.number, kind, buffer)
                buffer, skipping = buffer[-_LONGEST_MARK:], True
        if skipping:
            return
        if self.error:
            # The game at the break may lack its end, and half a game would pass for a whole one.
            buffer = buffer[: _last_start(buffer, kind)]
        if buffer.strip():
            yield Chunk(self.number, kind, buffer)


def _next_start(buffer: bytes, kind: str) -> int:
    """Where the first game after a broken one begins; 0 when none does."""
    if kind == "lines":
        return buffer.find(b"\n") + 1
    header = HEADER_LINE.search(buffer, 1)
    return header.start() if header else buffer.find(b"\n\n") + 1


def _last_start(buffer: bytes, kind: str) -> int:
    """Where the last game of `buffer` begins; 0 when no start but the first is seen."""
    if kind == "lines":
        return buffer.rfind(b"\n") + 1
    start = buffer.rfind(b"\n[Event ") + 1
    while start:
        # Other tags of the game may stand before [Event, with blank lines between them.
        before = buffer.rfind(b"\n", 0, start - _blank(buffer, start)) + 1
        line = buffer[before:start]
        if not HEADER_LINE.match(line) or has_moves(tags_of_line(line)[1]):
            return start
        start = before
    last = previous_end = -1
    for header in HEADER_LINE.finditer(buffer):
        line_end = buffer.find(b"\n", header.end())
        if previous_end >= 0 and has_moves(buffer[previous_end : header.start()]):
            last = header.start()
        previous_end = line_end if line_end >= 0 else len(buffer)
    if previous_end >= 0:
        return max(last, 0)
    # Bare movetext: a blank line is all there is between games.
    return buffer.rfind(b"\n\n") + 2 if b"\n\n" in buffer.rstrip(b"\n") else 0


def _blank(buffer: bytes, end: int) -> int:
    """How many bytes before `end` are blank."""
    tail = buffer[max(0, end - _LONGEST_MARK) : end]
    return len(tail) - len(tail.rstrip())
