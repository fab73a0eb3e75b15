"""Small models with stores of examples, for tests of the pages: chess games, and text in every script."""

import json
from functools import cache
from pathlib import Path

import torch

from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.gathering import make_store
from glassmoe.inspect.readers import open_readers
from glassmoe.inspect.store import FeatureStore, Gathering, store_path
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.pages.explore.explored import ExploredLayer
from glassmoe.pages.trace.cards import open_examples
from text_files import prepared, random_gpt2

MARKUP = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;"
SCRIPTS = [
    "plain words and more of them, again and again",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 smiles \U0001f600\U0001f600",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eright to left\u202c",
    "\u6771\u4eac\u90fd \u041f\u0440\u0438\u0432\u0435\u0442 \u0939\u093f\u0928\u094d\u0926\u0940 na\u00efve",
    "bell\x07 tab\t line\n end\x1b[2J\x7f \u2028 \ufeff",
    MARKUP,
]


def store_of(run: Path, corpus: Path, layers: list[int], gathering: Gathering | None = None) -> FeatureStore:
    """Stores of examples of some layers of a model; returns the last."""
    subject, readers = open_readers(str(run), layers, device="cpu")
    gathering = gathering or Gathering(read=4000, window=16, each=12, strongest=6, pool=20, batch_rows=8)
    for reader in readers.values():
        about = {"reader": reader.name, "layer": reader.number, "ffn": "x"}
        path = store_path(run, reader.name)
        made = make_store(path, subject, reader.layer, reader.place, Corpus.open(corpus), gathering, about)
    assert made is not None
    return made


@cache
def games(folder: Path) -> Path:
    """Prepared self-played games, in `folder`."""
    generate(folder, games=80, max_chars=160, valid_share=0.5, progress=False)
    return folder


def chess_model(run: Path, ffn: str = "moe-x", tokens: str = "characters") -> Path:
    """A model with random weights as transformers' files in `run`."""
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 96}
    more = {} if tokens == "characters" else {"tokens": tokens, "vocab_size": 2000}
    GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **shape, **more)).save_pretrained(run)
    return run


def chess_run(folder: Path, name: str = "chess", ffn: str = "moe-x") -> Path:
    """A model of games, with stores of both layers."""
    run = chess_model(folder / name, ffn)
    store_of(run, games(folder / "games"), [0, 1])
    return run


def text_run(folder: Path, name: str = "text", window: int = 8) -> Path:
    """A GPT-2 of text in every script, with a store of its layer 1."""
    corpus = folder / f"{name}-texts"
    texts = [f"{number} {text} " * (1 + number % 3) for number in range(12) for text in SCRIPTS]
    prepared(corpus, texts, valid_share=0.5)
    run = random_gpt2(folder / name, corpus, layers=2)
    store_of(run, corpus, [1], Gathering(read=4000, window=window, each=12, strongest=6, pool=20, batch_rows=8))
    return run


def examples(run: Path) -> list[ExploredLayer]:
    """The layers of a run that have examples, as `trace` opens them."""
    return open_examples(run, *open_readers(str(run), device="cpu"))


def explain(run: Path, reader: str, lines: list[dict[str, object]], judge: str = "rules") -> None:
    """Explanations as the verb explain writes them."""
    folder = run / "explanations" / reader.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / f"{judge}.jsonl").write_text(text, encoding="utf-8")


def data_of(folder: Path, name: str) -> object:
    """The value that a data file of a page hands over."""
    text = (folder / f"{name}.js").read_text(encoding="utf-8")
    begin, end = f'glass.got("{name}",', ");\n"
    assert text.startswith(begin) and text.endswith(end)
    return json.loads(text[len(begin) : -len(end)])
