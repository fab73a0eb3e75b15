"""The tag section of PGN games: where games begin, which text is tags, and which start position they name.

Source: PGN specification and implementation guide (1994), section 8.1. A tag is read as tokens: several may share a
line, and moves may follow a tag on its line. There is one difference: a tag at the beginning of a line ends an
unterminated comment, so that a broken game cannot swallow the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from glassmoe.data.sources import Skip

_NAME = rb'[^\W_][^\s"\[\]{}%]*'
# The line of a tag. Without quotes only tags of the start position count, because comments may have lines such as
# [White resigns].
_START = rb"[ \t]*\[[ \t]*(?:" + _NAME + rb'[ \t]*"|(?i:FEN|SetUp|Variant)[ \t]+[^\]\n]*\])'
HEADER_LINE = re.compile(rb"^" + _START, re.MULTILINE)
"""The beginning of a line of tags."""
# Lines of one tag each (group 1), which is the usual form and need not be taken apart, or one line of another form. The
# newline is in front because a search for a known first byte is several times faster.
_PLAIN = rb'\[\w+ "[^"\n]*"\](?=\n)'
_HEADERS = re.compile(rb"\n(?:(" + _PLAIN + rb"(?:\n" + _PLAIN + rb")*)|" + _START + rb"[^\n]*)")
# A value may hold quotes; only a quote before the bracket ends it, and not an escaped one.
_TAG = re.compile(
    rb"[ \t]*\[[ \t]*" + _NAME + rb'[ \t]*(?:"[^\n]*?(?:(?<!\\)"[ \t]*\]|"[ \t]*\][ \t]*$)|[ \t][^"\]\n]*\])',
    re.MULTILINE,
)
_FIRST_NAME = re.compile(rb"^[ \t]*\[[ \t]*(" + _NAME + rb")", re.MULTILINE)
_START_TAGS = re.compile(rb'\[[ \t]*(SetUp|FEN|Variant)[ \t]*"?([^"\]\n]*)', re.IGNORECASE)
_START_BOARD = b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq"
_STANDARD = {b"standard", b"chess", b"classical", b"normal", b"from position"}
_NOT_GIVEN = {b"", b"?", b"-", b"*"}

# A tag that does not begin its line, and what may be before it: a result or a move, a comment, variation or tag.
_TAG_WITHIN_LINE = re.compile(rb"\[(?<=[^\n]\[)(?=" + _NAME + rb'[ \t]*")')
_MAY_BE_BEFORE = re.compile(rb"(?:[\d*+#!?\])},.]|[OZ]-?[O0]|=[QRBN])[ \t]*\Z")
_LOOK_BACK = 4096
_COMMENTS = re.compile(rb"\{[^}]*\}?|;[^\n]*|^%[^\n]*|\[[^\]\n]*\]|^\[[^\n]*", re.MULTILINE)
_PLAYED = re.compile(rb"[a-h][1-8]|[O0]-[O0]|--|Z0|@@|(?<!\S)(?:1-0|0-1|1/2|\*)(?!\S)")


def header_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The tags of each game and the text after them; tags are b"" for movetext without them.

    Lines of tags that follow each other belong to one game. So do tags after a blank line, or after a stray line
    without a move or a result, unless they repeat a tag of the game.
    """
    data = b"\n" + _TAG_WITHIN_LINE.sub(_on_its_own_line, data)
    tags, text, begin, started = b"", b"", 0, False
    for block in _HEADERS.finditer(data):
        between = data[begin : block.start()]
        text = text + between if text else between
        new, rest = (block[0], b"") if block[1] else tags_of_line(block[0][1:])
        if text and not _is_between_tags(text):
            if has_moves(text, quick=new.startswith(b"\n[Event ")) or (tags and _repeats(tags, new)):
                yield tags, text
                tags = b""
            elif not started and text.strip():
                yield b"", text
        tags, text, started = tags + new if tags else new, rest, True
        begin = block.end()
    text += data[begin:]
    if started or text.strip():
        yield tags, text


def _on_its_own_line(tag: re.Match[bytes]) -> bytes:
    """The bracket of a tag, after a newline unless the tag belongs to a comment or to the value of another tag."""
    before = tag.string[max(0, tag.start() - _LOOK_BACK) : tag.start()]
    line = before[before.rfind(b"\n") + 1 :]
    in_comment = before.rfind(b"{") > before.rfind(b"}") or line.startswith(b"%") or b";" in _TAG.sub(b"", line)
    return b"[" if in_comment or not _MAY_BE_BEFORE.search(line) else b"\n["


def _is_between_tags(text: bytes) -> bool:
    """Whether a text is lines of comments, or lines that begin like tags: these do not end the tags around them."""
    lines = text[1:].split(b"\n")
    return all(line.startswith((b"[", b";", b"%")) for line in lines) and not has_moves(text)


def has_moves(text: bytes, quick: bool = False) -> bool:
    """Whether a text holds a move or the end of a game outside of its comments. `quick`: comments count, too."""
    if not _PLAYED.search(text):
        return False
    return quick or bool(_PLAYED.search(_COMMENTS.sub(b" ", text)))


def tags_of_line(line: bytes) -> tuple[bytes, bytes]:
    """The tags at the beginning of a line, and the text after them. A line without a whole tag counts as tags."""
    end = 0
    tags = b""
    while tag := _TAG.match(line, end):
        tags += b"\n" + tag[0].strip()
        end = tag.end()
    return (tags, line[end:]) if end else (b"\n" + line, b"")


def _repeats(tags: bytes, new: bytes) -> bool:
    """Whether a name of the `new` tags is one of `tags`."""
    return not {name.lower() for name in _FIRST_NAME.findall(tags)}.isdisjoint(
        name.lower() for name in _FIRST_NAME.findall(new)
    )


def require_standard(tags: bytes) -> None:
    """Raises Skip for a variant of chess and for a start position other than the usual one."""
    given = {name.lower(): value.strip() for name, value in _START_TAGS.findall(tags)}
    values = {name: value for name, value in given.items() if value not in _NOT_GIVEN}
    if values.get(b"variant", b"standard").lower() not in _STANDARD:
        raise Skip("variant", shown(values[b"variant"]))
    fen = values.get(b"fen", b"")
    if (fen or values.get(b"setup") == b"1") and not b" ".join(fen.split()).startswith(_START_BOARD):
        raise Skip("set-up position", shown(fen) or "SetUp without FEN")


DETAIL_CHARS = 80
"""Largest length of the detail of a skipped game, in characters."""


def shown(raw: bytes) -> str:
    """The beginning of a text of a file, for a message."""
    try:
        text = raw[: 2 * DETAIL_CHARS].decode("utf-8")
    except UnicodeDecodeError:
        text = raw[: 2 * DETAIL_CHARS].decode("latin-1")
    # Control characters would write to the reader's terminal.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.strip()[:DETAIL_CHARS])
