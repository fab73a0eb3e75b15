"""Stores of examples against every activation written out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from glassmoe.data.corpus import Corpus, Rows, mix, row_indices
from glassmoe.explaining.windows import TokenText
from glassmoe.inspect import examples, merging
from glassmoe.inspect import gathering as passes
from glassmoe.inspect.examples import BINS, Gatherer, SmallestKeys, bin_edges, fired
from glassmoe.inspect.gathering import StoreRequest, make_store, make_stores
from glassmoe.inspect.merging import merge_folder
from glassmoe.inspect.rows import RowBlock
from glassmoe.inspect.store import FeatureStore, Gathering, open_store, remove_store, store_path
from glassmoe.model import Features, GlassConfig, GlassForCausalLM
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import Subject, activations, inputs_at, load_subject
from glassmoe.text.documents import prepare_text
from text_files import made_up_texts, prepared, random_gpt2

WINDOW, ROW = 8, 24
SMALL = Gathering(read=40 * ROW, window=WINDOW, each=6, strongest=3, pool=12, batch_rows=4)


@pytest.fixture(scope="module")
def corpus(noise_games: Path) -> Corpus:
    return Corpus.open(noise_games)


def subject(tmp_path: Path, ffn: str = "moe-x") -> Subject:
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": ROW}
    GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **shape)).save_pretrained(tmp_path / ffn)
    return load_subject(str(tmp_path / ffn))


def made(path: Path, of: Subject, corpus: Corpus, gathering: Gathering = SMALL, **more: object) -> FeatureStore:
    found = make_store(path, of, neurons(of, 1), of.place(1, "mlp"), corpus, gathering, {"reader": "1/x"}, **more)
    assert found is not None
    return found


def strengths(store: FeatureStore, of: Subject) -> np.ndarray:
    """(R, N, F): every strength above 0 of the real tokens, the plain way."""
    tokens = torch.from_numpy(store.rows_RN.astype(np.int64))
    x = activations(of.model, [of.place(1, "mlp")], tokens)[of.place(1, "mlp")].x
    with torch.no_grad():
        dense = neurons(of, 1).features(x.flatten(0, 1)).to_dense().view(*tokens.shape, -1)
    if store.manifest["keep"]:
        least = dense.topk(store.manifest["keep"], dim=2).values[..., -1:]
        dense = torch.where(dense >= least, dense, 0)
    found = np.maximum(dense.numpy(), 0)
    found[np.arange(tokens.shape[1]) >= store.lengths_R[:, None]] = 0
    return found


def draw(window: int, feature: int) -> int:
    """The number by which a window is chosen for a feature, or not."""
    zero, number = np.array([0], np.uint64), np.array([window], np.uint64)
    return int((mix(mix(number) + mix(zero) + np.uint64(feature)) >> np.uint64(32))[0])


def same(a: FeatureStore, b: FeatureStore) -> None:
    for name in ("rows_RN", "counts_F", "windows_F", "maxima_F", "histogram_FB"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    np.testing.assert_allclose(a.sums_F, b.sums_F, rtol=1e-6)
    for feature in range(a.num_features):
        for read in (FeatureStore.top, FeatureStore.explaining, FeatureStore.scoring):
            one, two = read(a, feature), read(b, feature)
            assert np.array_equal(one.rows_E, two.rows_E) and np.array_equal(one.strengths_EL, two.strengths_EL)
        assert np.array_equal(a.silent(feature, 9).starts_E, b.silent(feature, 9).starts_E)


@pytest.mark.parametrize(("ffn", "keep"), [("moe-x", None), ("gelu", None), ("gelu", 5), ("switch", 3), ("peer", None)])
def test_a_store_against_all_activations_written_out(
    ffn: str, keep: int | None, corpus: Corpus, tmp_path: Path
) -> None:
    of = subject(tmp_path, ffn)
    store = made(tmp_path / "store", of, corpus, Gathering(**{**vars(SMALL), "keep": keep}))
    all_RNF = strengths(store, of)
    assert np.array_equal(store.counts_F, (all_RNF > 0).sum((0, 1)))
    np.testing.assert_allclose(store.sums_F, all_RNF.sum((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(store.maxima_F, all_RNF.max((0, 1)), rtol=1e-4)
    assert store.manifest["read_tokens"] == store.lengths_R.sum()
    assert store.manifest["l0"] == pytest.approx((all_RNF > 0).sum() / store.lengths_R.sum())

    windows_RWLF = all_RNF.reshape(len(all_RNF), ROW // WINDOW, WINDOW, -1)
    whole_RW = np.arange(1, ROW // WINDOW + 1) * WINDOW <= store.lengths_R[:, None]
    peak_RWF = np.where(whole_RW[..., None], windows_RWLF.max(2), 0)
    assert np.array_equal(store.windows_F, (peak_RWF > 0).sum((0, 1)))
    for feature in range(store.num_features):
        hits = [(int(r), int(w)) for r, w in np.argwhere(peak_RWF[..., feature] > 0)]
        chance = {(r, w): draw(r * (ROW // WINDOW) + w, feature) for r, w in hits}
        for half, read in ((0, store.explaining), (1, store.scoring)):
            found = read(feature)
            expected = sorted((h for h in hits if h[0] % 2 == half), key=lambda h: (chance[h], h))[:6]
            assert {(r, s // WINDOW) for r, s in zip(found.rows_E, found.starts_E, strict=True)} == set(expected)
            peaks = found.strengths_EL.max(1, initial=0)
            assert (np.diff(peaks) <= 0).all() and np.array_equal(
                found.deciles_E, np.arange(len(found)) * 10 // max(1, len(found))
            )
        for found in (store.explaining(feature), store.top(feature)):
            for r, s, line in zip(found.rows_E, found.starts_E, found.strengths_EL, strict=True):
                np.testing.assert_allclose(line, all_RNF[r, s : s + WINDOW, feature], rtol=2e-3, atol=1e-6)
            tokens = [store.rows_RN[r, s : s + WINDOW] for r, s in zip(found.rows_E, found.starts_E, strict=True)]
            assert np.array_equal(store.tokens(found), np.array(tokens).reshape(-1, WINDOW))
        strongest = np.sort(peak_RWF[..., feature].flatten())[::-1][: min(3, len(hits))]
        np.testing.assert_allclose(store.top(feature).strengths_EL.max(1), strongest, rtol=2e-3)
        for half, read in ((0, store.silent_explaining), (1, store.silent)):
            quiet = read(feature, 5)
            assert set(quiet.rows_E % 2) <= {half} and set(quiet.deciles_E) <= {-1}
            cells = [(r, s // WINDOW) for r, s in zip(quiet.rows_E, quiet.starts_E, strict=True)]
            assert len(set(cells)) == len(cells) and all(
                peak_RWF[r, w, feature] == 0 and whole_RW[r, w] for r, w in cells
            )


def test_the_histogram_by_hand() -> None:
    """Strengths 1, 1.2, 1.3 and 3 lie in the bins that begin at 1, 1, 1.25 and 3; what is tiny or huge at the ends."""
    gatherer = Gatherer(2, 2, 1, 1, {"explaining": np.zeros(0, np.int64), "scoring": np.zeros(0, np.int64)})
    values = torch.tensor([[1.0, 0.0], [1.2, 1e-9], [1.3, 1e9], [3.0, -2.0]])
    gatherer.add(fired(Features(values, 2), torch.ones(4, dtype=torch.bool)), 0, 1, 4, np.array([4]), 4)
    edges = bin_edges()
    found = {float(edges[b]): int(n) for b, n in enumerate(gatherer.histogram_FB[0]) if n}
    assert found == {1.0: 2, 1.25: 1, 3.0: 1}
    assert gatherer.histogram_FB[1, 0] == gatherer.histogram_FB[1, BINS - 1] == 1
    assert len(edges) == BINS + 1 and edges[0] == 2.0**-10 and edges[-1] == 2.0**6


@pytest.mark.parametrize("waiting", [0, 40, 10**6])
def test_stored_examples_against_a_plain_sort(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many equal keys, the greatest among them: of these the first that came stay, however often it is settled."""
    monkeypatch.setattr(examples, "WAITING", waiting)
    monkeypatch.setattr(examples, "MOST_PARTS", 3)
    rng = np.random.default_rng(0)
    kept, came = SmallestKeys(5, 4, 2), []
    for _ in range(30):
        n = int(rng.integers(0, 12))
        feature, window = rng.choice([0, 1, 3], n), np.arange(len(came), len(came) + n)
        key = rng.choice(np.array([0, 1, 7, 2**31, 2**32 - 1], np.uint32), n)
        came += list(zip(feature.tolist(), key.tolist(), window.tolist(), strict=True))
        taken = key <= kept.last_F[feature]
        strengths = np.stack([window, -window], 1).astype(np.float16)
        kept.add(key[taken], feature[taken], window[taken], strengths[taken])
    expected = [each for f in range(5) for each in sorted(each for each in came if each[0] == f)[:4]]
    found = kept.arrays()
    assert list(zip(*(found[name].tolist() for name in ("feature", "key", "window")), strict=True)) == expected
    assert np.array_equal(found["strengths"][:, 0], found["window"]) and found["strengths"].dtype == np.float16
    assert len(came) > 100 and len(expected) == 12


def test_stopped_passes_go_on_and_processes_share_one(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = subject(tmp_path)
    whole = made(tmp_path / "whole", of, corpus)
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0.0)
    real, calls = passes._Pass.add, []

    def dies(self: object, block: RowBlock, x_RND: torch.Tensor) -> None:
        calls.append(block.first)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(self, block, x_RND)

    monkeypatch.setattr(passes._Pass, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped", of, corpus)
    with pytest.raises(ValueError, match=r"is not finished; make one .* \(it goes on where it was\)"):
        open_store(tmp_path / "stopped")
    same(made(tmp_path / "stopped", of, corpus), whole)
    assert calls == [*range(0, 24, 4), *range(20, 40, 4)]

    args = (tmp_path / "shared", of, neurons(of, 1), of.place(1, "mlp"), corpus, SMALL, {"reader": "1/x"})
    assert make_store(*args, shard=(1, 2)) is None
    with pytest.raises(ValueError, match=r"lacks the share 0/2; run these jobs again, then merge"):
        merge_folder(tmp_path / "shared")
    assert make_store(*args, shard=(0, 2)) is None
    same(merge_folder(tmp_path / "shared"), whole)
    assert not list((tmp_path / "shared").glob("part-*"))

    calls.clear()
    monkeypatch.setattr(passes._Pass, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "other", of, corpus)
    other = Gathering(**{**vars(SMALL), "seed": 1})
    assert made(tmp_path / "other", of, corpus, other).manifest["seed"] == 1, (
        "of other settings nothing is gone on from"
    )
    assert calls[6:] == list(range(0, 40, 4))


def several(of: Subject, folder: Path) -> list[StoreRequest]:
    """Both layers, and the second one again for another folder."""
    return [
        StoreRequest(folder / name, neurons(of, n), of.place(n, "mlp"), {"reader": f"{n}/x"})
        for name, n in (("0", 0), ("1", 1), ("again", 1))
    ]


def test_stores_that_are_made_together_are_those_of_each_alone(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = subject(tmp_path)
    blocks = passed(of)
    alone = [make_stores([each], of, corpus, SMALL)[0] for each in several(of, tmp_path / "alone")]
    assert len(blocks) == 30
    together = make_stores(several(of, tmp_path / "together"), of, corpus, SMALL)
    assert len(blocks) == 40  # one pass over the ten batches
    for one, other in zip(together, alone, strict=True):
        same(one, other)
        assert one.manifest == other.manifest
        for name in ("rows", "features", "examples"):
            files = (store.path / f"{name}.safetensors" for store in (one, other))
            assert len({file.read_bytes() for file in files}) == 1

    # After a stop each store goes on where it was, also beside one that has nothing yet.
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0.0)
    real, calls = passes._Pass.add, []

    def dies(self: object, block: RowBlock, x_RND: torch.Tensor) -> None:
        calls.append(block.first)
        if len(calls) == 12:
            raise KeyboardInterrupt
        real(self, block, x_RND)

    requests = several(of, tmp_path / "stopped")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(passes._Pass, "add", dies)
        make_stores(requests[:2], of, corpus, SMALL)
    blocks.clear()
    for one, other in zip(make_stores(requests[1:], of, corpus, SMALL), alone[1:], strict=True):
        same(one, other)
    assert len(blocks) == 10
    blocks.clear()
    same(make_stores(requests[:1], of, corpus, SMALL)[0], alone[0])
    assert len(blocks) == 5

    shares = tmp_path / "shares"
    assert [make_stores(several(of, shares), of, corpus, SMALL, (which, 2)) for which in (0, 1)] == [[None] * 3] * 2
    for request, other in zip(several(of, shares), alone, strict=True):
        same(merge_folder(request.path), other)


def passed(of: Subject) -> list[int]:
    """Grows by one with each pass over the model."""
    seen: list[int] = []
    of.model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_every_strength_is_stored_on_request(corpus: Corpus, tmp_path: Path) -> None:
    of = subject(tmp_path)
    store = made(tmp_path / "store", of, corpus, Gathering(**{**vars(SMALL), "full": True}))
    all_RNF = strengths(store, of)
    for feature in range(0, store.num_features, 7):
        tokens, values = store.activations(feature)
        expected = all_RNF[..., feature].flatten()
        assert np.array_equal(tokens, np.flatnonzero(expected))
        np.testing.assert_allclose(values, expected[tokens], rtol=2e-3)
    with pytest.raises(ValueError, match="--full"):
        made(tmp_path / "examples", of, corpus).activations(0)


def test_files_of_an_abandoned_pass_do_not_join_another(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = subject(tmp_path)
    longer = Gathering(**{**vars(SMALL), "full": True})
    real, calls = passes._Pass.add, []

    def dies(self: object, block: RowBlock, x_RND: torch.Tensor) -> None:
        calls.append(block.first)
        if len(calls) == 7:
            raise KeyboardInterrupt
        real(self, block, x_RND)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(passes._Pass, "add", dies)
        made(tmp_path / "store", of, corpus, longer)
    assert len(list((tmp_path / "store").glob("full-*"))) == 6
    shorter = Gathering(**{**vars(longer), "read": 9 * ROW, "seed": 3, "batch_rows": 3})
    store, alone = (made(tmp_path / name, of, corpus, shorter) for name in ("store", "alone"))
    assert len(list((tmp_path / "store").glob("full-*"))) == 3
    assert all(map(np.array_equal, store.block(0, 64), alone.block(0, 64)))
    # A file that is missing is not read as one without strengths.
    next((tmp_path / "store").glob("full-*3.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"full-\w+-000000003\.safetensors is missing, .*--full --again"):
        store.block(0, 64)


def test_stores_of_earlier_versions_are_read(corpus: Corpus, tmp_path: Path) -> None:
    """Without checksums, and with names of files that do not name the pass."""
    of = subject(tmp_path)
    store = made(tmp_path / "store", of, corpus, Gathering(**{**vars(SMALL), "full": True}))
    old = tmp_path / "old"
    old.mkdir()
    for file in store.path.glob("*.safetensors"):
        name = file.name.replace(f"-{store.manifest['pass']}", "")
        save_file(load_file(file), old / name)
    manifest = {key: value for key, value in store.manifest.items() if key != "pass"}
    (old / "manifest.json").write_text(json.dumps(manifest))
    same(open_store(old), store)
    assert all(map(np.array_equal, open_store(old).block(0, 64), store.block(0, 64)))


@pytest.mark.parametrize("site", ["mlp", "stream", "mlp-out"])
def test_a_pass_that_ends_before_the_layer_reads_the_same(site: str, tmp_path: Path) -> None:
    of, tokens = subject(tmp_path), torch.arange(3 * ROW).view(3, ROW) % 32
    places = [of.place(0, "mlp"), of.place(1, site)]
    expected = activations(of.model, places, tokens)
    assert torch.equal(inputs_at(of.model, places[1:], tokens)[places[1]], expected[places[1]].x)
    both = inputs_at(of.model, places, tokens)
    assert both.keys() == {*places} and all(torch.equal(both[place], expected[place].x) for place in places)
    for place in places:
        module = of.model.get_submodule(place.module)
        assert not module._forward_pre_hooks and not module._forward_hooks
    of.model.feed_forwards()[0].w_dec.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not all finite"):
        inputs_at(of.model, places[1:], tokens)


def test_features_that_are_not_finite_are_reported(corpus: Corpus, tmp_path: Path) -> None:
    of = subject(tmp_path)
    of.model.feed_forwards()[1].b_enc = torch.nn.Parameter(torch.full((4, 16), float("nan")))
    with pytest.raises(RuntimeError, match="not all finite"):
        made(tmp_path / "store", of, corpus)


def test_text_is_read_by_document_without_what_begins_it(tmp_path: Path) -> None:
    prepared(tmp_path / "data", made_up_texts(60))
    corpus = Corpus.open(tmp_path / "data")
    of = load_subject(str(random_gpt2(tmp_path / "gpt2", tmp_path / "data")))
    store = made(tmp_path / "store", of, corpus, Gathering(read=400, window=8, batch_rows=2, each=5, split="train"))
    assert store.manifest["skipped_starts"] and store.manifest["read_tokens"] == (store.lengths_R - 1).sum()
    for feature in range(0, store.num_features, 5):
        found = store.explaining(feature)
        assert not found.strengths_EL[found.starts_E == 0, 0].any()


def cut_up(store: FeatureStore, corpus: Corpus, split: str) -> None:
    """Every row is the start token and a piece of its document, all pieces of a document lie in one half, and none
    twice."""
    start, sequences, step = corpus.kind.start, corpus.split(split), store.manifest["row"] - 1
    halves: dict[int, set[int]] = {}
    found = set()
    for number, (row, length, document) in enumerate(
        zip(store.rows_RN, store.lengths_R, store.source_rows_R, strict=True)
    ):
        tokens = sequences.tokens(int(document)).tolist()
        begins = [
            b for b in range(0, max(1, len(tokens) - 1), step) if tokens[1 + b : 1 + b + step] == row[1:length].tolist()
        ]
        assert row[0] == start and not row[length:].any() and begins
        halves.setdefault(number % 2, set()).add(int(document))
        found.add((int(document), row[:length].tobytes()))
    assert not halves[0] & halves[1] and len(found) == len(store.rows_RN)


def test_documents_are_cut_into_rows_of_the_coders_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the start of each alone: almost every token of the text is read, and what was read is reported."""
    prepared(tmp_path / "data", made_up_texts(60, longest=300), valid_share=0.5)
    corpus = Corpus.open(tmp_path / "data")
    of = load_subject(str(random_gpt2(tmp_path / "gpt2", tmp_path / "data")))
    everything = Gathering(window=8, batch_rows=8, each=5)
    store = made(tmp_path / "store", of, corpus, everything, context=16)
    assert store.manifest["row"] == 16 and store.manifest["cut"] == "pieces"
    cut_up(store, corpus, "valid")
    split = corpus.split("valid")
    available, longest = split.data.size - len(split), int(np.diff(split.offsets.astype(np.int64)).max())
    assert available - longest < store.manifest["read_tokens"] <= available
    said = capsys.readouterr().err
    assert (
        f"{store.manifest['read_tokens']:,} of the {available:,} tokens, in" in said
        and "1,000,000 were requested" in said
    )
    # Fewer tokens: until they are enough, whatever the length of documents.
    few = made(tmp_path / "few", of, corpus, Gathering(read=400, window=8, batch_rows=8, each=5), context=16)
    cut_up(few, corpus, "valid")
    assert 400 <= few.manifest["read_tokens"] < 400 + 16
    # Strengths are those of the model on the rows.
    all_RNF = strengths(few, of)
    all_RNF[:, 0] = 0
    assert np.array_equal(few.counts_F, (all_RNF > 0).sum((0, 1)))
    # A context below a window, as of a quick trial, does not keep its coders from being explained.
    assert made(tmp_path / "short", of, corpus, everything, context=4).manifest["row"] == 8
    # Without a coder the model's own context holds, unless it is so long that reading would be slow.
    assert made(tmp_path / "own", of, corpus, everything).manifest["row"] == 40
    monkeypatch.setattr(passes, "USUAL_WINDOW", 24)
    assert made(tmp_path / "long", of, corpus, everything).manifest["row"] == 24


def test_documents_of_one_row_are_read_as_they_are(tmp_path: Path) -> None:
    """The order of documents is the one that earlier versions read them in."""
    prepared(tmp_path / "data", made_up_texts(60, longest=8))
    corpus = Corpus.open(tmp_path / "data")
    of = load_subject(str(random_gpt2(tmp_path / "gpt2", tmp_path / "data")))
    store = made(tmp_path / "store", of, corpus, Gathering(window=8, batch_rows=2, each=5, split="train"))
    rows = Rows(corpus.split("train"), f"documents:{store.manifest['row']}")
    order = row_indices(len(rows), 0, 0, len(rows))
    assert np.array_equal(store.source_rows_R, order)
    assert np.array_equal(store.rows_RN, rows.batch(order)[0])


def test_rows_know_the_source_of_their_document(tmp_path: Path) -> None:
    texts = made_up_texts(60)
    lines = [json.dumps({"text": text, "source": ["web", "books", "rare"][i % 3 % 2]}) for i, text in enumerate(texts)]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, json.dumps({"text": "unread", "source": "last"})]))
    options = {"tokenizer": "train:320", "workers": 1, "valid_share": 0.1, "progress": False}
    prepare_text([tmp_path / "t.jsonl"], tmp_path / "data", **options)
    corpus = Corpus.open(tmp_path / "data")
    split = corpus.split("train")
    of = load_subject(str(random_gpt2(tmp_path / "gpt2", tmp_path / "data")))
    gathering = Gathering(read=700, window=8, batch_rows=2, each=5, split="train")
    store = made(tmp_path / "store", of, corpus, gathering)
    sources = {text: json.loads(line)["source"] for text, line in zip(texts, lines, strict=True)}
    names = store.manifest["source_names"]
    assert [names[number] for number in store.sources_R] == [sources[split.text(d)] for d in store.source_rows_R]
    # Windows know it; only names that occur are kept; and a store that was made before has none.
    reader = TokenText(store, corpus.kind)
    found = store.explaining(int(store.windows_F.argmax()))
    assert reader.windows(found).source_E.tolist() == [names[store.sources_R[row]] for row in found.rows_E]
    assert sorted(names) == ["books", "web"]
    arrays = load_file(store.path / "rows.safetensors")
    del arrays["sources"], store.manifest["source_names"]
    save_file(arrays, store.path / "rows.safetensors")
    (store.path / "manifest.json").write_text(json.dumps(store.manifest))
    old = open_store(store.path)
    assert old.sources_R is None and TokenText(old, corpus.kind).windows(found).source_E is None


def test_a_full_disk_loses_nothing(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(tmp_path)
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0.0)
    real, written = merging.save_file, []

    def fills_up(arrays: object, path: Path, header: object) -> None:
        written.append(path)
        if len(written) == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(arrays, path, header)

    monkeypatch.setattr(merging, "save_file", fills_up)
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path / "store", of, corpus)
    assert [file.name[:5] + file.name[17:] for file in (tmp_path / "store").iterdir()] == ["part--0-of-1.safetensors"]
    same(made(tmp_path / "store", of, corpus), made(tmp_path / "whole", of, corpus))


def test_mistakes_are_told(corpus: Corpus, tmp_path: Path) -> None:
    path = store_path(tmp_path / "run", "1/moe-x")
    assert path == tmp_path / "run/features/1-moe-x"
    with pytest.raises(
        ValueError, match=r"does not exist; make one with: glassmoe explain .*run --layer N --judge none"
    ):
        open_store(path)
    of = subject(tmp_path)
    store = made(path, of, corpus)
    for read in (store.top, store.explaining, store.scoring, store.activations):
        with pytest.raises(ValueError, match="feature 64 is not in this layer: it has features 0 to 63"):
            read(64)
    with pytest.raises(ValueError, match="feature -1 is not in"):
        store.silent(-1, 5)
    with pytest.raises(ValueError, match="of other weights"):
        open_store(path, is_of=lambda digest: digest == "0" * 64)
    for name, wrong in (("each", 0), ("keep", 0), ("read", -1)):
        with pytest.raises(ValueError, match=f"{name} is {wrong}"):
            Gathering(**{name: wrong})
    with pytest.raises(ValueError, match="longest row has 24 tokens, and a window 30"):
        made(tmp_path / "long", of, corpus, Gathering(window=30))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ValueError, match="cannot be read by this glassmoe"):
        open_store(path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        remove_store(path)
    (path / "notes.txt").unlink()
    remove_store(path)
    assert not path.exists()
