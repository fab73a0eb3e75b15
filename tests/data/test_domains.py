"""Domains plug in by a registry line or an entry point, and generic code asks them for everything of their own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassmoe import config as configuration
from glassmoe import registry
from glassmoe.cli import main as cli
from glassmoe.data import domains
from glassmoe.data.corpus import Corpus
from glassmoe.data.domains import Domain, domain, domain_names, domain_of, token_kind
from glassmoe.data.tokens import TokenKind
from glassmoe.data.writer import CorpusWriter, PackedSequences, hash_texts
from glassmoe.inspect.sample import continuations
from glassmoe.model.subject import load_subject
from glassmoe.training.language import train

LETTERS = "^ACGT"


def encode(text: str) -> Any:
    return np.array([LETTERS.index(letter) for letter in text], np.uint8)


BASES = TokenKind(
    name="bases",
    domain="dna",
    vocabulary=LETTERS,
    separator="",
    dtype=np.dtype("u1"),
    encode=encode,
    decode=lambda ids: "".join(LETTERS[token] for token in np.asarray(ids).tolist()),
    prompt="^",
    about="genes, one token a base",
    one="base",
    counted="bases",
    start_token="^",
    unit="genes",
)


def synthesize(out: Path, *, count: int, seed: int, tokens: str) -> None:
    assert tokens == "bases"
    rng = np.random.default_rng(seed)
    rows = [np.concatenate([[0], rng.integers(1, 5, 40)]).astype(np.uint8) for _ in range(count)]
    with CorpusWriter(out, BASES, valid_share=0.2, overwrite=True) as writer:
        lengths = np.full(count, 41, np.uint32)
        writer.add(PackedSequences(np.concatenate(rows), lengths, hash_texts([row.tobytes() for row in rows])))
        writer.finish({"kind": "dna", "synthetic": True, "seed": seed})


DNA = Domain(
    name="dna",
    corpus="genomes",
    unit="genes",
    prepare=lambda _: "prepare-dna FILES",
    kinds={"bases": BASES},
    synthesize=synthesize,
)


@dataclass
class Point:
    """An entry point of another package."""

    name: str

    def load(self) -> Domain:
        return DNA


@pytest.fixture
def dna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("dna")] if group == "glassmoe.domains" else [])
    domains.domain.cache_clear()
    yield
    domains.domain.cache_clear()


def test_known_domains_are_imported_on_first_use() -> None:
    code = (
        "import sys, glassmoe.data.corpus, glassmoe.data.writer\n"
        "assert not any(name.startswith(('glassmoe.chess', 'glassmoe.text')) for name in sys.modules)\n"
        "from glassmoe.data.domains import domain_of\n"
        "assert domain_of('moves').name == 'chess' and 'glassmoe.text.domain' not in sys.modules\n"
        "assert domain_of('text').name == 'text'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown domain 'go'; known: chess, text"):
        domain("go")
    with pytest.raises(ValueError, match=r"unknown kind of tokens 'words'; known: characters \(chess\)"):
        domain_of("words")
    with pytest.raises(ValueError, match="vocabulary of text tokens is that of a tokenizer"):
        token_kind("text")


@pytest.mark.usefixtures("dna")
def test_a_domain_of_another_package_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but the entry point is needed: synthetic data, messages, a tokenizer and the card are its own."""
    assert domain_names() == ["chess", "text", "dna"] and domain_of("bases") is DNA
    values = {
        "data": {"tokens": "bases", "rows": "genes:32", "synthetic_games": 60},
        "model": {"ffn": "relu", "layers": 1, "heads": 1, "width": 16, "active_width": 16},
        "train": {"steps": 2, "batch_rows": 4, "micro_rows": 4},
    }
    run = train(configuration.from_dict(values), tmp_path / "run")
    corpus = Corpus.open(run / "genomes")
    assert corpus.kind is BASES and corpus.require("bases") is corpus
    assert "genes, one token a base" in (run / "README.md").read_text()
    assert json.loads((run / "tokenizer.json").read_text())["model"]["vocab"] == {
        "^": 0,
        "A": 1,
        "C": 2,
        "G": 3,
        "T": 4,
    }
    with pytest.raises(ValueError, match=r"holds genomes as bases, expected games as moves; .*glassmoe data chess"):
        corpus.require("moves")
    with pytest.raises(
        ValueError, match=r"no prepared genomes at .*nowhere.* prepare genomes with: prepare-dna FILES --out"
    ):
        Corpus.open(tmp_path / "nowhere", "bases")
    assert cli.main(["train", "--out", str(tmp_path / "other"), "--data.tokens", "words"]) == cli.USAGE
    assert "moves (chess), text (text), bases (dna)" in capsys.readouterr().err
    # Resumed, measured, continued and decomposed as any other run.
    assert train(configuration.from_dict(values), tmp_path / "run") == run
    assert cli.main(["eval", "ppl", str(run)]) == 0
    assert continuations(load_subject(str(run), "cpu").model, "^AC", 5)[0].startswith("^AC")
    words = ["decompose", str(run), "--layer", "0", "--coders", "sae-topk", "--k", "2", "--features", "16"]
    assert cli.main([*words, "--tokens", "500", "--batch-tokens", "120", "--out", str(tmp_path / "coders")]) == 0


def test_a_corpus_of_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    synthesize(tmp_path / "c", count=5, seed=0, tokens="bases")
    with pytest.raises(ValueError, match=r"manifest.json: unknown kind of tokens 'bases'; known: characters"):
        Corpus.open(tmp_path / "c")
