"""A model carried into transformers: it opens where glassmoe is not installed, computes and writes what it does here,
and its card says what its files say."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from glassmoe.chess.moves import VOCABULARY
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.cli.main import main
from glassmoe.data.domains import token_kind
from glassmoe.hub.card import write_card
from glassmoe.hub.model import code_files, export_model
from glassmoe.inspect.sample import Sampling, sampled
from glassmoe.layers.routers import ROUTERS
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.model.subject import load_subject
from text_files import made_up_texts, prepared, text_run

OUTSIDE = """
import json, sys
sys.modules["glassmoe"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folders, prompts = json.loads(sys.argv[1])
found = []
for folder, prompt in zip(folders, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        features = model.feed_forwards()[0].features(torch.ones(3, model.config.width))
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    found.append([ids.tolist(), logits.double().sum(-1).tolist(), made.tolist(), float(features.values.sum())])
assert not any(name.startswith("glassmoe.") for name in sys.modules)
print(json.dumps(found))
"""


def opened_outside(folders: list[Path], prompts: list[str], cache: Path) -> list[list]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", OUTSIDE, json.dumps([[str(folder) for folder in folders], prompts])]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=cache, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    prepared(folder, made_up_texts(150), valid_share=0.2)
    return text_run(folder.parent / "run", folder, "moe-x")


def test_it_opens_without_glassmoe_and_computes_the_same(run: Path, tmp_path: Path) -> None:
    """Every kind of layer, and every kind of token."""
    torch.manual_seed(0)
    sources, prompts = [run], ["the cat"]
    for ffn in FEED_FORWARD:
        kind = MOVES if ffn == "moe-x" else CHARACTERS
        settings = {"tokens": kind.name, "vocab_size": kind.size, "context": 24, "layers": 2, "heads": 2, "width": 16}
        model = GlassForCausalLM(GlassConfig(**settings, active_width=32, num_experts=4, ffn=ffn, init_std=0.2))
        model.save_pretrained(tmp_path / ffn)
        sources.append(tmp_path / ffn)
        prompts.append("; e2e4 e7e5" if kind is MOVES else ";1.e4 e5")
    folders = [export_model(str(source), tmp_path / f"out-{source.name}") for source in sources]
    found = opened_outside(folders, prompts, tmp_path)
    for source, prompt, (ids, logits, made, features) in zip(sources, prompts, found, strict=True):
        loaded = load_subject(str(source), "cpu", own=True)
        given = torch.tensor(ids)
        # What the tokenizer of transformers reads is what ours reads, without the start of a document.
        text = loaded.model.config.tokens == "text"
        assert ids[0] == loaded.kind().encode(prompt).tolist()[1 if text else 0 :]
        with torch.no_grad():
            here = loaded.model(input_ids=given).logits.double().sum(-1)
            read = loaded.model.feed_forwards()[0].features(torch.ones(3, 16))
        np.testing.assert_allclose(here.numpy(), logits, atol=1e-5)
        assert float(read.values.sum()) == pytest.approx(features, abs=1e-5)
        again = loaded.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=6, pad_token_id=0)
        assert again.tolist() == made


def test_the_folder_has_the_code_that_it_needs_and_no_more(run: Path, tmp_path: Path) -> None:
    out = export_model(str(run), tmp_path / "out")
    code = set(code_files())
    assert {"configuration.py", "transformer.py", "moe.py", "features.py"} <= code
    assert not {"__init__.py", "upcycle.py", "loss.py"} & code
    files = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert {path.name for path in out.iterdir()} == code | files | {"tokenizer.json", "tokenizer_config.json"}
    # With glassmoe it is a model like any: read, measured, exported again.
    assert isinstance(AutoModelForCausalLM.from_pretrained(out), GlassForCausalLM)
    assert isinstance(AutoModelForCausalLM.from_pretrained(run), GlassForCausalLM)
    export_model(str(out), tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert "What it was trained on was not known" in (tmp_path / "again/README.md").read_text()


@pytest.mark.parametrize("name", ["characters", "moves"])
def test_tokenizers_of_games_in_transformers(name: str, tmp_path: Path) -> None:
    kind = token_kind(name)
    GlassForCausalLM(
        GlassConfig(tokens=name, vocab_size=kind.size, layers=1, heads=1, width=16, active_width=16)
    ).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(export_model(str(tmp_path / "model"), tmp_path / "out"))
    text = ";1.e4 e5 2.Nf3 Nc6 3.O-O+ a8=Q#" if kind is CHARACTERS else "; e2e4 e7e5 g1f3 a7a8q"
    ids = tokenizer(text)["input_ids"]
    assert ids == kind.encode(text).tolist() and tokenizer.decode(ids) == text
    assert len(tokenizer) == kind.size and (kind is CHARACTERS or kind.size == len(VOCABULARY) == 1969)
    padded = tokenizer.convert_ids_to_tokens(range(kind.size))
    assert padded == list(kind.vocabulary)


def test_the_card_agrees_with_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = tmp_path / "held.txt"
    held.write_text("the cat sees a dog under the tree")
    assert main(["eval", "ppl", str(run)]) == 0
    assert main(["eval", "ppl", str(run), "--on", f"lambada={held}"]) == 0
    capsys.readouterr()
    assert main(["hub", "export", str(run), str(tmp_path / "out"), "--license", "apache-2.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folders"] == [str(tmp_path / "out")]
    card = (tmp_path / "out/README.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in header and "library_name: transformers" in header
    assert "tags: [glassmoe, interpretability, text, mixture-of-experts]" in header
    loaded = load_subject(str(run), "cpu", own=True)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    measured = json.loads((run / "measures/ppl.json").read_text())["values"]
    on = json.loads((run / "measures/ppl-lambada.json").read_text())["values"]
    environment = json.loads((run / "environment.json").read_text())
    for words in (
        "# moe-x text model",
        f"| {last['tokens']:,} ",
        environment["data_sha256"],
        "6 of 6",
        f"{last['valid_loss']:.4f} at step 6",
        f"{loaded.model.num_parameters():,}",
        f"{last['layers'][1]['l0']:.1f}",
        f"{measured['loss']:.4f} nats a token",
        f"{measured['bits_per_byte']:.4f} bits a byte",
        f"{on['perplexity']:.2f}",
        f"{on['last_word']['perplexity']:.1f} (",
        "held.txt, sha256 " + on["sha256"][:16],
        "trust_remote_code=True",
    ):
        assert words in body, words
    assert str(run.parent) not in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    "licence", ["mit\ninjected: true", "mit # and more", "[a, b]", "yes", "--- a", "a: b", "'", "é\t"]
)
def test_a_licence_is_one_value_of_the_header(licence: str, run: Path, tmp_path: Path) -> None:
    assert main(["hub", "export", str(run), str(tmp_path / "out"), "--license", licence]) == 0
    header = (tmp_path / "out/README.md").read_text().removeprefix("---\n").partition("\n---\n")[0]
    values = yaml.safe_load(header)
    assert list(values) == ["library_name", "pipeline_tag", "license", "tags"] and values["license"] == licence


def a_folder_with_code(path: Path, family: str) -> Path:
    """A model whose configuration and tokenizer want code beside them to run, which would leave a file."""
    path.mkdir()
    code = f"open({str(path / 'ran')!r}, 'w')\n"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (path / f"{name}.py").write_text(code)
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    (path / "config.json").write_text(json.dumps({"model_type": family, "auto_map": auto_map}))
    words = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (path / "tokenizer_config.json").write_text(json.dumps(words))
    (path / "model.safetensors").write_bytes(b"")
    (path / "words.txt").write_text("some words")
    return path


@pytest.mark.parametrize(
    "words",
    [
        "eval ppl FOLDER",
        "eval probe FOLDER --task surnames",
        "generate FOLDER",
        "steer FOLDER --layer 0 --feature 1 --add 1",
        "hub export FOLDER out",
        "decompose FOLDER --layers 0 --data FOLDER --out out",
        "upcycle FOLDER moex-from-gpt2 --out out",
        "data text FOLDER/words.txt --tokenizer FOLDER --out out",
        "explain FOLDER --layer 0",
    ],
)
def test_code_beside_a_model_is_refused_without_a_prompt(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = a_folder_with_code(tmp_path / "model", "own")
    assert main(words.replace("FOLDER", str(folder)).split()) == 2
    error = capsys.readouterr().err
    assert "needs code of its own (auto_map), which glassmoe does not run" in error and len(error.splitlines()) == 1
    assert not (folder / "ran").exists()


def test_an_exported_folder_opens_with_our_own_code(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    out = export_model(str(run), tmp_path / "out")
    assert "auto_map" in json.loads((out / "config.json").read_text())
    assert type(load_subject(str(out), "cpu", own=True).model) is GlassForCausalLM


def test_measures_of_other_steps_are_left_out_and_counted(run: Path) -> None:
    record = json.loads((run / "measures/ppl.json").read_text()) if (run / "measures/ppl.json").exists() else None
    if record is None:
        assert main(["eval", "ppl", str(run)]) == 0
        record = json.loads((run / "measures/ppl.json").read_text())
    record.pop("checksum", None)
    layer = {"layer": 0, "coverage": 0.4321, "held_out_coverage": 0.3, "reconstruction": 0.2}
    (run / "measures/boards.json").write_text(json.dumps({**record, "values": {"games": 7, "layers": [layer]}}))
    (run / "measures/ppl-old.json").write_text(json.dumps({**record, "step": 3}))
    loaded = load_subject(str(run), "cpu", own=True)
    card = write_card(loaded.model, loaded.kind(), run, loaded.config, "unknown")
    for name in ("boards", "ppl-old"):
        (run / f"measures/{name}.json").unlink()
    assert "1 measures of other training steps than that of these weights were left out." in card
    assert "0.432" in card and "on 7 games" in card and "license: unknown" in card


def test_the_card_leaves_out_what_a_measure_does_not_know(run: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    assert main(["eval", "ppl", str(run)]) == 0
    kept = (run / "measures/ppl.json").read_text()
    record = json.loads(kept)
    record.pop("checksum", None)
    names = ("ppl", "ppl-a", "ppl-b", "boards")

    def card(**values: dict[str, Any]) -> str:
        for name in names:
            measure = {**record, "values": values.get(name.replace("-", "_"), {})}
            (run / f"measures/{name}.json").write_text(json.dumps(measure))
        return write_card(loaded.model, loaded.kind(), run, loaded.config, "unknown")

    try:
        empty = card()
        half = card(
            ppl={"perplexity": 3.5, "bits_per_byte": 1.25},
            ppl_a={"perplexity": 2.0, "source": "a.txt", "last_word": {"perplexity": 4.0}},
            boards={"games": None, "layers": [{"layer": 0, "coverage": 0.4}]},
        )
        loss = card(ppl={"loss": 1.5, "tokens": 1200})
    finally:
        for name in names:
            (run / f"measures/{name}.json").unlink()
        (run / "measures/ppl.json").write_text(kept)
    assert "## Held-out loss" not in empty and "None" not in empty + half + loss
    assert "perplexity 3.500, 1.2500 bits a byte, on the validation split." in half
    assert "a: a.txt" in half and "| 4.0" in half and "random weights." in half
    assert "1.5000 nats a token, on 1,200 tokens of the validation split." in loss


def test_generation_after_import_alone_and_without_network(run: Path) -> None:
    """`from_pretrained` on the run directory itself, in a process that imported `glassmoe.model` and nothing more. That
    transformers is offline is not what keeps it from the network."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "import sys, tempfile, glassmoe.model as m\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "given = tokenizer('the cat', return_tensors='pt')\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    m.GlassForCausalLM(m.GlassConfig(width=16, layers=1, heads=1, active_width=16)).save_pretrained(d)\n"
        "    AutoModelForCausalLM.from_pretrained(d)\n"
        "print(model.generate(**given, max_new_tokens=5, do_sample=False)[0].tolist())\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True, env=environment
    )
    ids = json.loads(done.stdout.splitlines()[-1])
    loaded = load_subject(str(run), "cpu", own=True)
    given = loaded.kind().encode("the cat").tolist()[1:]
    assert ids[: len(given)] == given and len(given) < len(ids) <= len(given) + 5
    assert len(sampled(loaded.model, "the cat", loaded.kind(), Sampling(5))[0]) == 1


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as taking in a folder needs."""

    seen: list[tuple[str, bytes]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, body))
        if "/preupload/" in self.path:
            taken = {"uploadMode": "regular", "shouldIgnore": False}
            answer: dict = {"files": [{"path": each["path"], **taken} for each in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            answer = {"commitUrl": "https://huggingface.co/me/model/commit/abc", "commitOid": "abc", "hookOutput": ""}
        else:
            answer = {"url": "https://huggingface.co/me/model", "name": "me/model", "id": "1"}
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "abc", "siblings": [], "private": False, "tags": []})

    def _answer(self, values: dict) -> None:
        raw = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_push(run: Path, tmp_path: Path, hub: str) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_made_up"}
    environment |= {"HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "glassmoe", "hub", "export", str(run), str(tmp_path / "out"), "--push", "me/model"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pushed: " in done.stdout
    (commit,) = [body for path, body in Hub.seen if path == "/api/models/me/model/commit/main"]
    files = {line["value"]["path"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert files == {path.name for path in (tmp_path / "out").iterdir()}


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")

    def said(*words: object, code: int = 2) -> str:
        assert main(["hub", "export", *map(str, words)]) == code
        return capsys.readouterr().err

    assert "is there already; give a folder that is not" in said(run, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"
    assert "required: out" in said(run)
    assert f"unexpected '{tmp_path / 'a'}'" in said(run, tmp_path / "a", "--out", tmp_path / "b")
    assert "there is no run at" in said(tmp_path / "nowhere", tmp_path / "a")
    assert "push belongs to models" in said(run, tmp_path / "a", "--format", "sparsify", "--push", "me/model")
    # The suite is offline.
    assert "could not be pushed to me/model" in said(run, tmp_path / "b", "--push", "me/model", code=1)
    assert (tmp_path / "b/config.json").exists()
    FEED_FORWARD["mine"] = lambda c: FEED_FORWARD["relu"](c)
    try:
        own = GlassForCausalLM(GlassConfig(layers=1, heads=1, width=16, active_width=16, ffn="mine"))
        own.save_pretrained(tmp_path / "own")
        assert "which is not glassmoe's own" in said(tmp_path / "own", tmp_path / "c")
        ROUTERS["mine"] = ROUTERS["learned"]
        mixture = GlassConfig(layers=1, heads=1, width=16, active_width=16, ffn="switch", router="mine")
        GlassForCausalLM(mixture).save_pretrained(tmp_path / "mixture")
        assert "has the router mine, which is not glassmoe's own" in said(tmp_path / "mixture", tmp_path / "c")
    finally:
        del FEED_FORWARD["mine"]
        ROUTERS.pop("mine", None)
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob("*.partial"))
