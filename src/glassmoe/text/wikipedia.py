"""Articles of a Wikipedia dump (XML, compressed or not) as plain text: what is left of the markup after tables,
templates, references and links are removed."""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast
from xml.etree import ElementTree

REMOVED = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<ref[^>]*>.*?</ref>"
    r"|<(math|gallery|timeline|imagemap|code|source|syntaxhighlight|score|hiero)\b[^>]*>.*?</\1>",
    re.DOTALL,
)
TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
NO_TEXT_LINK = re.compile(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*\]\]", re.IGNORECASE)
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
ADDRESS = re.compile(r"\[https?://[^\s\]]*\s*([^\]]*)\]")
HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$", re.MULTILINE)
LIST_MARK = re.compile(r"^([*#:;]+)[ \t]*", re.MULTILINE)
LAST_SECTIONS = re.compile(
    r"^==\s*(?:See also|References|Notes|Further reading|External links|Bibliography|Footnotes)\s*==\s*$.*",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Title and plain text of every article of a dump; redirects are left out. ElementTree.ParseError for a file that
    is no XML."""
    with bz2.open(dump) if dump.suffix == ".bz2" else dump.open("rb") as file:
        title, text = "", ""
        for _, element in ElementTree.iterparse(cast(IO[bytes], file)):
            name = element.tag.rpartition("}")[2]
            if name == "title":
                title = element.text or ""
            elif name == "text":
                text = element.text or ""
            elif name == "page":
                if not text.lstrip().upper().startswith("#REDIRECT"):
                    yield title, plain_text(text)
                element.clear()


def plain_text(markup: str) -> str:
    """The prose of an article's markup, with headings and list items on lines of their own."""
    text = REMOVED.sub("", LAST_SECTIONS.sub("", markup))
    for inner, replacement in ((TEMPLATE, ""), (TABLE, ""), (NO_TEXT_LINK, ""), (LINK, r"\1")):
        text = _innermost_first(inner, replacement, text)
    # A caption may hold links, so that its own link ends only now.
    text = _innermost_first(NO_TEXT_LINK, "", text)
    text = re.sub(r"'{2,}|<[^<>]+>", "", ADDRESS.sub(r"\1", text))
    text = LIST_MARK.sub(lambda mark: "- " if mark[1][-1] in "*#" else "", HEADING.sub(r"\2", text))
    text = re.sub(r"[ \t\xa0]+", " ", html.unescape(text))
    text = re.sub(r" ?\( ?[,;]? ?\)| +(?=[,.;])", "", text)
    return re.sub(r"\n[ \t]*(?:\n[ \t]*)+", "\n\n", text).strip()


def _innermost_first(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """Replace until nothing is left to replace: what is nested becomes visible when what it holds is gone."""
    count = 1
    while count:
        text, count = pattern.subn(replacement, text)
    return text
