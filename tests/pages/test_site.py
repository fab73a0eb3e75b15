"""The folder of pages: what is in it, what it refuses, and that text stays text and pages stay small."""

import json
import shutil
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from markupsafe import escape

from explored import MARKUP, chess_model, chess_run, data_of, explain, games, store_of, text_run
from glassmoe.cli import main as cli
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.gathering import make_store
from glassmoe.inspect.readers import open_readers
from glassmoe.inspect.store import Gathering, open_store, store_path
from glassmoe.pages.explore.explored import open_explored, read_explanations
from glassmoe.pages.explore.records import SHOWN
from glassmoe.pages.explore.serve import address, server
from glassmoe.pages.explore.site import SHARD, WORDS, build_site

ODD = "<b onclick=alert(1)>&\"'run"
KB = 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of games whose name is markup, explained; and a model of text."""
    folder = tmp_path_factory.mktemp("explored")
    run = chess_run(folder, ODD)
    scores = {"detection": {"balanced_accuracy": 0.8, "f1": 0.7, "per_decile": [0.5] * 10, "asked": 9}}
    board = {"property": "white knight on f3", "precision": 0.6, "recall": 0.7, "f1": 0.65}
    lines = [
        {"feature": 5, "explanation": MARKUP, "explainer": MARKUP, "scores": scores, "board": board},
        {"feature": 2, "explanation": "less sure", "scores": {"detection": {"balanced_accuracy": 0.6}}, "board": None},
        "not json",
        {"feature": 7, "explanation": None, "scores": None, "why": "nothing fits"},
    ]
    explain(run, "1/moe-x", lines)
    explain(run, "1/moe-x", [{"feature": 5, "explanation": "another judge"}], "other")
    text_run(folder)
    build_site([run, folder / "text"], folder / "site")
    return folder


def layer(made: Path) -> Path:
    (found,) = (path for path in (made / "site").glob("*/*") if path.name == "1-moe-x")
    return found


def test_every_feature_is_there_once(made: Path) -> None:
    store = open_store(store_path(made / ODD, "1/moe-x"))
    columns, records = data_of(layer(made), "list"), {}
    for shard in range(-(-store.num_features // SHARD)):
        records |= data_of(layer(made), f"features-{shard}")
    assert sorted(columns["ids"]) == list(range(store.num_features)) == sorted(map(int, records))
    assert columns["ids"][:2] == [5, 2]  # the best explained first
    for name in ("density", "max", "score", "f1", "board"):
        assert len(columns[name]) == store.num_features
    for row, feature in enumerate(columns["ids"]):
        record, words = records[str(feature)], data_of(layer(made), f"words-{row // WORDS}")
        assert record["count"] == store.counts_F[feature]
        assert columns["max"][row] == pytest.approx(float(store.maxima_F[feature]), rel=0.01)
        assert columns["density"][row] == pytest.approx(record["count"] / store.manifest["read_tokens"], rel=0.01)
        assert sum(record["histogram"]["counts"]) == record["count"]
        assert (words["peaks"][row % WORDS] is None) == (record["count"] == 0 or not record["top"])
        assert len(record["deciles"]) == 10


def test_an_example_is_what_the_store_holds(made: Path) -> None:
    store = open_store(store_path(made / ODD, "1/moe-x"))
    feature = int(store.counts_F.argmax())
    record = data_of(layer(made), f"features-{feature // SHARD}")[str(feature)]
    top, example = store.top(feature, 10), record["top"][0]
    assert len(record["top"]) == len(top)
    vocabulary = open_explored([made / ODD], [1])[0].kind.vocabulary
    row = [vocabulary[token] for token in store.rows_RN[top.rows_E[0]]]
    start = int(top.starts_E[0])
    assert example["tokens"] == row[start : start + store.window]
    np.testing.assert_allclose(example["strengths"], top.strengths_EL[0], rtol=0.01)
    assert example["before"] == "".join(row[:start])
    assert example["at"] == start + example["peak"] == start + int(top.strengths_EL[0].argmax())
    assert example["row"] == store.source_rows_R[top.rows_E[0]]
    assert example["board"].count("/") == 7


def test_explanations_are_read_as_they_come(made: Path) -> None:
    (source,) = open_explored([made / ODD], [1])
    assert [line.judge for line in source.explained[5]] == ["rules", "other"]
    assert source.score(5) == 0.8 and source.score(7) is None and source.score(0) is None
    assert source.board(5).property == "white knight on f3" and source.board(2) is None
    said = data_of(layer(made), "features-0")["5"]["said"]
    assert said[0]["scores"]["detection"]["balanced_accuracy"] == 0.8 and said[1]["scores"] == {}
    assert data_of(layer(made), "meta")["explained"] == 2


def test_the_judge_that_scored_comes_first(tmp_path: Path) -> None:
    lines = {
        "none": [{"feature": f, "explanation": "a board", "scores": {}} for f in range(3)],
        "words": [{"feature": 1, "explanation": "words", "scores": {"embedding": {"auc": 0.7}}, "board": None}],
    }
    for judge, each in lines.items():
        explain(tmp_path, "x", each, judge)
    found = read_explanations(tmp_path / "explanations/x", {})
    assert [line.judge for line in found[1]] == ["words", "none"] and [line.judge for line in found[0]] == ["none"]


def test_a_store_of_the_greatest_features_only(tmp_path: Path) -> None:
    run, corpus = chess_model(tmp_path / "run", "gelu"), games(tmp_path / "games")
    store_of(run, corpus, [1])
    subject, readers = open_readers(str(run), [1], device="cpu")
    (reader,) = readers.values()
    gathering = Gathering(read=2000, window=16, each=4, strongest=2, pool=4, keep=3)
    place, about = store_path(run, "1/gelu-k3"), {"reader": "1/gelu-k3", "layer": 1}
    make_store(place, subject, reader.layer, reader.place, Corpus.open(corpus), gathering, about)
    explain(run, "1/gelu-k3", [{"feature": 2, "explanation": "w", "scores": {"embedding": {"auc": 0.7}}}])
    both = open_explored(run)
    assert [source.title for source in both] == ["1/gelu", "1/gelu-k3"]
    assert both[1].score(2) == 0.7 and both[0].explanation(2) == ""
    written = build_site([run], tmp_path / "site")
    assert [layer.page for layer in written.layers] == ["run/1-gelu/index.html", "run/1-gelu-k3/index.html"]


def test_boards_tell_features_that_have_no_explanation(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / ODD, run, ignore=shutil.ignore_patterns("explanations"))
    (run / "measures").mkdir()
    values = {"best_layer": 1, "layers": [], "tracked": [{"feature": 3, "slot": "black king on g8", "f1": 0.9}]}
    (run / "measures/boards.json").write_text(json.dumps({"schema_version": 1, "values": values}))
    first, second = open_explored([run])
    assert second.board(3).to_dict() == {"property": "black king on g8", "f1": 0.9} and first.board(3) is None


def test_nothing_from_a_run_becomes_markup(made: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (made / "site").rglob("*.html")]
    assert any(str(escape(ODD)) in page for page in pages) and any("&lt;script&gt;" in page for page in pages)
    for page in pages:
        assert "<b onclick" not in page and "<img" not in page and "<script>" not in page
    # Names of folders and files are letters that need no escaping in any address.
    for path in (made / "site").rglob("*"):
        assert not set(str(path.relative_to(made / "site"))) & set("<>&\"'() ")


def test_no_page_names_the_network_and_all_links_are_relative(made: Path) -> None:
    for page in (made / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8").replace("http-equiv", "")
        assert "http" not in text and 'href="/' not in text and 'src="/' not in text
    for asset in (made / "site/assets").iterdir():
        text = asset.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "innerHTML" not in text and "eval(" not in text


def weight(site: Path, feature: int, folder: Path) -> int:
    """Bytes that the page of a feature loads."""
    files = [folder / "index.html", folder / "meta.js", folder / f"features-{feature // SHARD}.js"]
    return sum(file.stat().st_size for file in [*files, *(site / "assets").iterdir()])


def test_experts(made: Path) -> None:
    store = open_store(store_path(made / ODD, "1/moe-x"))
    experts = data_of(layer(made), "experts")
    each = store.num_features // 4
    assert len(experts) == 4 and sum(expert["share"] for expert in experts) == pytest.approx(1, abs=0.01)
    for number, expert in enumerate(experts):
        counts = store.counts_F[number * each : (number + 1) * each]
        assert expert["alive"] == (counts > 0).sum() and expert["dead"] == np.flatnonzero(counts == 0).tolist()
        sums = store.sums_F[number * each : (number + 1) * each]
        if counts.any():
            assert expert["features"][0][0] == number * each + sums.argmax()
    assert data_of(layer(made), "meta")["features_of_expert"] == each
    (dense,) = (path for path in (made / "site").glob("text/*"))
    assert data_of(dense, "experts") == []


def test_silent_features_are_there(tmp_path: Path) -> None:
    run, corpus = chess_model(tmp_path / "run", "relu"), games(tmp_path / "games")
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "model.safetensors")
    weights["model.layers.1.ffn.w_enc"][4] = 0
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    store_of(run, corpus, [1])
    written = build_site([run], tmp_path / "site")
    assert written.layers[0].silent == 1
    record = data_of(tmp_path / "site/run/1-relu", "features-0")["4"]
    assert record["count"] == 0 and record["top"] == [] and record["mean"] is None
    assert record["histogram"]["counts"] == [] and record["near"]["read"] == []


@pytest.mark.parametrize("window", [1, 39])
def test_windows_of_one_token_and_of_a_whole_row(window: int, tmp_path: Path) -> None:
    text_run(tmp_path, window=window)
    build_site([tmp_path / "text"], tmp_path / "site")
    (folder,) = (tmp_path / "site/text").iterdir()
    record = data_of(folder, "features-0")["0"]
    assert all(len(example["tokens"]) == window for example in record["top"])


def test_rows_of_ten_thousand_tokens_make_no_heavy_page(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from glassmoe.training.run import tokenizer_of
    from text_files import prepared

    prepared(tmp_path / "texts", [f"{n} " + "word \U0001f642" * 4000 for n in range(4)], valid_share=0.9)
    kind = Corpus.open(tmp_path / "texts").kind
    torch.manual_seed(0)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 10_000, "vocab_size": kind.size}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=kind.start, eos_token_id=kind.start))
    model.save_pretrained(tmp_path / "long")
    tokenizer_of(kind, 10_000).save_pretrained(tmp_path / "long")
    gathering = Gathering(read=20_000, window=10_000, each=20, strongest=20, pool=2, batch_rows=1)
    store = store_of(tmp_path / "long", tmp_path / "texts", [0], gathering)
    assert store.window == 10_000
    build_site([tmp_path / "long"], tmp_path / "site")
    (folder,) = (tmp_path / "site/long").iterdir()
    record = data_of(folder, "features-0")["0"]
    assert all(len(example["tokens"]) == SHOWN for example in record["top"])
    for example in record["top"]:
        assert example["strengths"][example["peak"]] == max(example["strengths"])
    assert weight(tmp_path / "site", 0, folder) < 300 * KB


def test_pages_weigh_little(made: Path) -> None:
    for folder in (made / "site").glob("*/*"):
        if folder.is_dir():
            assert all(weight(made / "site", f, folder) < 300 * KB for f in range(0, 32, SHARD))


def test_the_first_so_many(made: Path, tmp_path: Path) -> None:
    written = build_site([made / ODD], tmp_path / "site", layers=[1], features=3)
    assert [layer.features for layer in written.layers] == [3] and written.layers[0].of == 64
    (folder,) = (tmp_path / "site").glob("*/1-moe-x")
    columns = data_of(folder, "list")
    assert columns["ids"] == [5, 2, 0]
    assert sorted(data_of(folder, "features-0")) == ["0", "2", "5"]
    assert not (folder / "features-1.js").exists()


def test_a_site_is_replaced_and_nothing_else(made: Path, tmp_path: Path) -> None:
    site, run = tmp_path / "site", made / "text"
    build_site([made / ODD, run], site)
    build_site([run], site)  # ours: replaced
    assert not list(site.glob("*/1-moe-x")) and (site / "text").is_dir()
    (site / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which"):
        build_site([run], site)
    assert (site / "notes.txt").read_text() == "mine" and (site / "index.html").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a").write_text("x")
    with pytest.raises(ValueError, match="is not empty, and `glassmoe explore` did not"):
        build_site([run], tmp_path / "other")
    with pytest.raises(ValueError, match="is a file"):
        build_site([run], tmp_path / "other/a")
    (tmp_path / "empty").mkdir()
    build_site([run], tmp_path / "empty")
    # Nothing half made is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other", "site"]


def test_the_verb(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explore", str(made / ODD), "--out", str(tmp_path / "site"), "--layer", "1", "--json"]
    assert cli.main(words) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["layers"][0]["reader"] == "1/moe-x" and Path(written["site"]).is_file()
    assert cli.main(words[:-1]) == 0
    assert "1/moe-x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "{bare} --out {tmp}/s",
            "has no examples of its features yet; make them with: glassmoe explain {bare} --layer N",
        ),
        ("{run} --layer 7 --out {tmp}/s", "layer 7 is not in"),
        ("{half} --layer 0 --out {tmp}/s", "glassmoe explain {half} --layer 0 --judge none"),
        ("{tmp}/none --out {tmp}/s", "there is no run at"),
        ("{run} {run} --out {tmp}/s", "the same run is given twice"),
        ("{run} --out {bare}", "is not empty"),
        ("{run} --port 80 --out {tmp}/s", "port is the port of serve"),
        ("{run} --export delphi --serve --out {tmp}/s", "writes files and no pages"),
        ("{run} --export pdf --out {tmp}/s", "takes one of neuronpedia, delphi, figures"),
        ("{run} --export delphi --out {tmp}/s", "keeps examples only; make it again with: glassmoe explain"),
        ("{run} --features 0 --out {tmp}/s", "expected a whole number above 0"),
    ],
)
def test_mistakes(words: str, message: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, half, run = tmp_path / "bare", tmp_path / "half", tmp_path / "run"
    chess_model(bare)
    shutil.copytree(made / ODD, run)
    shutil.copytree(made / ODD, half, ignore=shutil.ignore_patterns("0-moe-x"))
    names = {"bare": bare, "half": half, "run": run, "tmp": tmp_path}
    capsys.readouterr()
    assert cli.main(["explore", *words.format(**names).split()]) == 2
    errors = capsys.readouterr().err
    assert message.format(**names) in errors and errors.count("glassmoe: ") == 1 and "Traceback" not in errors
    assert not (tmp_path / "s").exists()


def test_examples_of_other_weights_are_refused(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / ODD, run)
    chess_model(run, "moe-x")
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "model.safetensors")
    save_file({name: w + 0.01 for name, w in weights.items()}, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="of other weights than the model's are now"):
        build_site([run], tmp_path / "site")


def test_serving(made: Path) -> None:
    with server(made / "site") as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        with urlopen(address(serving) + "index.html") as answer:
            assert answer.read() == (made / "site/index.html").read_bytes()
        assert address(serving).startswith("http://127.0.0.1:")
        with pytest.raises(ValueError, match="cannot serve on"):
            server(made / "site", serving.server_address[1])
        serving.shutdown()


def test_the_list_of_a_prompt(made: Path, tmp_path: Path) -> None:
    """The page, the server and `explain --prompt` say what the model says when it is opened."""
    import glassmoe
    from glassmoe.pages.explore.prompts import live_prompts

    text = "plain words and \u6771\u4eac <b>more</b>"
    run = made / "text"
    opened = glassmoe.load(run, layers=[1], device="cpu")
    (name,) = opened
    features = opened.features(text)
    build_site([run], tmp_path / "site", prompts=[text, "again"])
    (page,) = (tmp_path / "site").glob("*/*/index.html")
    first, second = data_of(page.parent, "prompts")
    assert (first["prompt"], second["prompt"]) == (text, "again")
    assert first["tokens"] == features.tokens and first["active"] == features.active.sum(-1).tolist()
    assert [[each[0] for each in token] for token in first["strongest"]] == [
        [feature for feature, _ in token] for token in features.top(5)
    ]
    assert data_of(page.parent, "meta")["prompts"] == 2 and data_of(page.parent, "live") is False
    place = str(page.parent.relative_to(tmp_path / "site"))
    with server(tmp_path / "site", answer=live_prompts([run], device="cpu")) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        base = f"{address(serving)}{place}/"
        with urlopen(base + "live.js") as answer:
            assert answer.read() == b'glass.got("live",true);\n'
        with urlopen(f"{base}prompt.js?{urlencode({'text': text})}") as answer:
            script = answer.read().decode()
        value = json.loads(script.removeprefix('glass.got("prompt",').removesuffix(");\n"))
        assert value == first
        with urlopen(f"{base}prompt.js?{urlencode({'text': 'word ' * 500})}") as answer:
            said = answer.read().decode()
            assert "cannot read the prompt 'word word" in said and "expected 1 to" in said
        with pytest.raises(HTTPError, match="404"):
            urlopen(address(serving) + "nowhere/prompt.js?text=a")
        serving.shutdown()
    said = glassmoe.explain(run, layer=1, prompt=text, device="cpu")
    assert said.name == name and [token.token for token in said.tokens] == features.tokens
    explained = said.tokens[1].strongest[0].feature
    explain(tmp_path / "other", name, [{"feature": explained, "explanation": "fires on words"}])
    from glassmoe.explaining.prompted import saved_explanations

    folder = tmp_path / "other/explanations" / name.replace("/", "-")
    subject = glassmoe.load(run, device="cpu").subject
    assert saved_explanations(folder, subject) == {explained: "fires on words"}
    # What was said of other weights, or of other data, is not said of these.
    file = next(folder.glob("*.jsonl"))
    for key, digest, shown in (("weights_sha256", "0" * 64, False), ("data_sha256", "0" * 64, True)):
        beside = file.with_suffix(".json")
        beside.write_text(json.dumps({"settings": {"store": {key: digest}}}))
        assert bool(saved_explanations(folder, subject)) == shown
        assert read_explanations(folder, {key: digest}) and not read_explanations(folder, {key: "1" * 64})


def test_prompts_that_cannot_be_read(made: Path, tmp_path: Path) -> None:
    import glassmoe

    with pytest.raises(ValueError, match="no file of prompts at"):
        glassmoe.explore(made / "text", out=tmp_path / "site", prompts=tmp_path / "prompts.txt")
    with pytest.raises(ValueError, match="expected 1 to"):
        glassmoe.explore(made / "text", out=tmp_path / "site", prompts=["word " * 500], device="cpu")
    assert not (tmp_path / "site").exists()
