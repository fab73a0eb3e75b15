"""Text: preparation compared with `datasets.map`, the memory of preparing a large file, and the lines of `text_models`.

The text is generated, with word frequencies by Zipf's law, or a file of your own.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassmoe.text.documents import prepare_text

from .compare import Sizes, alternate, per_second, quiet, ratios, row, skipped
from .memory import POLL_SECONDS, watch
from .text_models import generation_rows, training_rows

PROCESSES = 2
WORDS, DOCUMENT_WORDS = 60_000, 400
"""Different words, and the median number of words of a document."""
_SYLLABLES = [
    first + vowel + last
    for first in (*"bcdfghjklmnprstvw", "st", "tr", "pl", "ch", "sh", "th")
    for vowel in (*"aeiou", "ai", "ea", "ou")
    for last in ("", "", *"nrstlm", "nd", "ck")
]


def text_rows(sizes: Sizes, device: torch.device, dtype: torch.dtype, text: Path | None = None) -> list[dict[str, Any]]:
    """Every line about text. `text`: a .jsonl file of documents to tokenise instead of generated ones."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        root = Path(folder)
        file = text or write_text_file(root / "text.jsonl", sizes.text_bytes)
        tokenizer = _tokenizer(file, root, sizes)
        return [
            _tokenising_row(file, tokenizer, root, sizes, own=text is not None),
            *training_rows(tokenizer, sizes, device, dtype),
            *generation_rows(sizes, device),
            _memory_row(root, sizes),
        ]


def write_text_file(file: Path, size: int) -> Path:
    """About `size` bytes of different documents, one JSON object per line, the same at every call."""
    rng = np.random.default_rng(0)
    spell = random.Random(0)
    spelt = ["".join(spell.choices(_SYLLABLES, k=min(4, count))) for count in rng.geometric(0.5, WORDS)]
    # Every tenth word ends a clause, every twentieth a sentence, every two-hundredth a paragraph.
    marks = np.array(["", ",", ".", ".\n\n"])[np.digitize(rng.random(WORDS), [0.9, 0.95, 0.995])]
    words = [word + mark for word, mark in zip(spelt, marks, strict=True)]
    often = np.cumsum(1 / np.arange(1, WORDS + 1))
    written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < size:
            count = int(rng.lognormal(np.log(DOCUMENT_WORDS), 1)) + 1
            drawn = np.searchsorted(often, rng.random(count) * often[-1])
            written += out.write(json.dumps({"text": " ".join([words[i] for i in drawn.tolist()])}) + "\n")
    return file


def _tokenizer(file: Path, root: Path, sizes: Sizes) -> Path:
    """A folder of text prepared with a BPE trained on it, whose tokenizer transformers opens."""
    from transformers import PreTrainedTokenizerFast

    folder = root / "tokenizer"
    prepare_text([file], folder, tokenizer=f"train:{sizes.text_ids}", workers=1, valid_share=0.05, progress=False)
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", model_max_length=1 << 30
    ).save_pretrained(root / "transformers")
    return folder


def _tokenising_row(file: Path, tokenizer: Path, root: Path, sizes: Sizes, *, own: bool) -> dict[str, Any]:
    name = "tokenising text"
    if find_spec("datasets") is None:
        return skipped(name, "install datasets beside glassmoe: pip install datasets")
    tokens: dict[str, int] = {}

    def ours() -> None:
        corpus = prepare_text(
            file, root / "ours", tokenizer=str(tokenizer), workers=PROCESSES, progress=False, overwrite=True
        )
        tokens["ours"] = sum(corpus.tokens.values()) - sum(corpus.sequences.values())
        tokens["duplicates"] = corpus.duplicates

    def theirs() -> None:
        tokens["theirs"] = _map(file, root / "transformers", root)

    seconds = alternate({"ours": ours, "datasets": theirs}, sizes.repeats)
    size = file.stat().st_size
    what = "a file of one's own" if own else "made-up text, words as often as Zipf says"
    return row(
        name,
        ratios(seconds["datasets"], seconds["ours"]),
        of="bytes/s of datasets.map",
        at_least=2.0,
        note=f"{size / 1e6:.0f} MB of .jsonl, {what}; the same byte-level BPE of {sizes.text_ids} ids, {PROCESSES} "
        "processes each. Theirs: load_dataset of the file into a new cache, map(batched) with the transformers "
        "tokenizer, ids alone kept. Ours: duplicates removed, split, checksums of input and output besides",
        tokens_per_second=per_second(tokens["ours"], seconds["ours"]),
        tokens_per_second_of_peer=per_second(tokens["theirs"], seconds["datasets"]),
        megabytes_per_second=per_second(size, seconds["ours"]) / 1e6,
        tokens=tokens["ours"],
        tokens_of_peer=tokens["theirs"],
        duplicates=tokens["duplicates"],
    )


def _map(file: Path, tokenizer: Path, root: Path) -> int:
    """Number of tokens of the file by datasets and transformers, which write to a temporary folder."""
    import datasets
    from pyarrow.compute import list_value_length
    from pyarrow.compute import sum as total
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    encode = partial(_encode, tokenizer=AutoTokenizer.from_pretrained(tokenizer))
    with tempfile.TemporaryDirectory(dir=root) as cache:
        read = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
        encoded = read.map(encode, batched=True, num_proc=PROCESSES, remove_columns=read.column_names)
        return int(total(list_value_length(encoded.data.column("input_ids"))).as_py())


def _encode(batch: dict[str, list[str]], tokenizer: Any) -> Any:
    return tokenizer(batch["text"], return_attention_mask=False, return_token_type_ids=False)


def _memory_row(root: Path, sizes: Sizes) -> dict[str, Any]:
    file = write_text_file(root / "large.jsonl", sizes.large_text_bytes)
    words = [sys.executable, "-m", "glassmoe", "data", "text", str(file), "--tokenizer", f"train:{sizes.text_ids}"]
    words += ["--out", str(root / "large"), "--workers", str(PROCESSES)]
    greatest, _ = watch(words, root / "log", "preparing text")
    manifest = json.loads((root / "large/manifest.json").read_text())
    return row(
        f"memory of preparing {file.stat().st_size / 1e9:.2g} GB of text",
        [greatest],
        "GiB",
        at_most=1.0,
        note=f"glassmoe data text --tokenizer train:{sizes.text_ids} --workers {PROCESSES}: the greatest sum of "
        f"resident memory over it and its workers in looks {POLL_SECONDS} s apart; pages that they share count in each",
        documents=sum(manifest["documents"].values()),
        tokens=sum(manifest["token_counts"].values()),
    )
