"""Sparse probing: planted features are found, scores by hand, texts read as stated, and bad tasks say what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from glassmoe.measure.probing import (
    ProbeProtocol,
    ProbeResult,
    ReaderProbe,
    _class,
    _split,
    _strengths,
    encoded,
    f1,
    probe_task,
)
from glassmoe.measure.regressions import logistic_regressions
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import activations, load_subject
from glassmoe.text.labelled import LEAST, Labelled, checked, labelled, surnames
from text_files import made_up_texts, prepared, random_gpt2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("probing")
    prepared(folder / "text", made_up_texts(200), valid_share=0.3)
    return str(random_gpt2(folder / "model", folder / "text"))


def test_f1_by_hand() -> None:
    """2 hits, 1 false alarm, 1 miss: 4 / (4 + 2)."""
    assert f1(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)) == pytest.approx(4 / 6)
    assert f1(np.zeros(3, bool), np.ones(3, bool)) == 0.0


def test_a_planted_feature_is_found_and_noise_is_not() -> None:
    draw = np.random.default_rng(0)
    positive = draw.random(400) < 0.25
    values = draw.random((400, 30)).astype(np.float32)
    values[:, 17] = positive + 0.1 * draw.random(400)
    found = _class("x", values, positive, ProbeProtocol(top=5, splits=3))[0]
    assert found.feature == 17 and found.f1 == 1.0 and found.half == 0.0 and found.firing == 1.0
    assert found.f1_random < 0.6 and found.f1_always == pytest.approx(2 * positive.mean() / (1 + positive.mean()))
    noise = _class("x", draw.random((400, 30)).astype(np.float32), positive, ProbeProtocol(top=5, splits=3))[0]
    # What the test part chooses is ahead of what it did not choose.
    assert noise.f1 < 0.6 and noise.f1_chosen_by_test >= noise.f1
    silent = values.copy()
    silent[positive] = 0
    none = _class("x", silent, positive, ProbeProtocol(top=5, splits=2))[0]
    assert none.feature is None and none.f1 == 0.0 and none.firing is None


def test_the_parts_of_a_split_do_not_overlap_and_have_the_stated_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from glassmoe.measure import probing

    seen = []

    def scores(*given: Any) -> list[np.ndarray]:
        features, learn, parts = given[2:]
        seen.append((learn, *parts))
        return [np.zeros(len(features)) for _ in parts]

    monkeypatch.setattr(probing, "_scores", scores)
    positive = np.arange(200) < 50
    _split(np.random.default_rng(1).random((200, 4)).astype(np.float32), positive, ProbeProtocol(), 0)
    learn, choose, test = seen[0]
    assert sorted([*learn, *choose, *test]) == list(range(200))
    # A fifth tests; a quarter of the rest chooses; of each side.
    assert [int(positive[part].sum()) for part in (test, choose, learn)] == [10, 10, 30]
    assert [len(part) for part in (test, choose, learn)] == [40, 40, 120]
    assert sorted(seen[1][1]) == sorted(test)


def test_the_probe_is_the_stated_regression() -> None:
    """Against a regression written out: weights that balance the sides, half the squared slope, 200 Newton steps."""
    from glassmoe.measure.probing import _scores

    draw = np.random.default_rng(2)
    positive = draw.random(120) < 0.2
    x = (draw.random(120) + 0.5 * positive).astype(np.float32)
    weight = np.where(positive, 120 / (2 * positive.sum()), 120 / (2 * (~positive).sum()))
    w = b = 0.0
    for _ in range(200):
        p = 1 / (1 + np.exp(-(w * x + b)))
        g = np.array([(weight * (p - positive) * x).sum() + w, (weight * (p - positive)).sum()])
        r = weight * p * (1 - p)
        h = np.array([[(r * x * x).sum() + 1, (r * x).sum()], [(r * x).sum(), r.sum()]])
        w, b = np.array([w, b]) - np.linalg.solve(h, g)
    everyone = np.arange(120)
    (score,) = _scores(x[:, None], positive, np.array([0]), everyone, (everyone,))
    assert score[0] == pytest.approx(f1(w * x + b > 0, positive))


@pytest.mark.parametrize(("samples", "top"), [(40, 30), (700, 60)])
def test_regressions_are_those_of_scikit_learn(samples: int, top: int) -> None:
    """Of features that are rare, frequent, tiny, large, far from 0, and of one that separates the sides."""
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(samples)
    positive = draw.random(samples) < 0.25
    fires = draw.random((top, samples)) < draw.uniform(0.05, 1, (top, 1))
    x = draw.random((top, samples)) * fires + positive * draw.uniform(0, 2, (top, 1)) * (draw.random(samples) < 0.5)
    x *= 10.0 ** draw.uniform(-3, 3, (top, 1))
    x[0] += 100 * x[0].max()
    x[1] = 50 * positive
    x = x.astype(np.float32)
    found = logistic_regressions(x, positive)
    for each, slope, intercept in zip(x, found.slope_F, found.intercept_F, strict=True):
        probe = LogisticRegression(solver="newton-cholesky", max_iter=200, class_weight="balanced")
        probe.fit(each[:, None].astype(np.float64), positive)
        assert slope == pytest.approx(probe.coef_.item(), rel=1e-5)
        assert intercept == pytest.approx(probe.intercept_.item(), rel=1e-5, abs=1e-7)
        assert np.array_equal(each * slope + intercept > 0, probe.predict(each[:, None]))


def test_a_constant_feature_never_predicts_yes() -> None:
    found = logistic_regressions(np.array([[0.0] * 9, [3.7] * 9]), np.arange(9) < 4)
    assert found.slope_F.tolist() == found.intercept_F.tolist() == [0, 0]


@pytest.mark.parametrize(("last", "token"), [(False, False), (True, False), (True, True)])
def test_strengths_against_a_loop_over_texts(model: str, last: bool, token: bool) -> None:
    """Means without the start token, of the first tokens, the last ones, or the last one alone."""
    subject = load_subject(model)
    layer, place = neurons(subject, 1), subject.place(1, "mlp")
    texts = [*made_up_texts(7), "x"]
    task = Labelled("t", texts, ["a"] * 8, last, token)
    rows, kept, unreadable = encoded(subject, texts, task, 5)
    assert (kept, unreadable) == (list(range(8)), 0)
    found = _strengths(subject, {"n": (layer, place)}, rows, token, batch=3)["n"]
    kind = subject.kind()
    for i, text in enumerate(texts):
        content = np.asarray(kind.encode(text)).astype(np.int64)[1:]
        content = content[-5:] if last else content[:5]
        ids = torch.tensor([[kind.start, *content]])
        assert rows[i].tolist() == ids[0].tolist()
        x = activations(subject.model, [place], ids)[place].x[0]
        dense = layer.features(x).to_dense()
        naive = dense[-1] if token else dense[1:].mean(0)
        np.testing.assert_allclose(found[i], naive.numpy(), atol=1e-5)


def test_listed_features_are_summed_as_dense_ones() -> None:
    from glassmoe.layers.features import Features
    from glassmoe.measure.probing import _sums

    values, ids = torch.rand(5, 3), torch.tensor([[0, 2, 2], [1, 0, 3], [3, 3, 3], [0, 1, 2], [2, 1, 0]])
    listed, text = Features(values, 4, ids), torch.tensor([0, 0, 1, 2, 2])
    dense = Features(listed.to_dense(), 4)
    torch.testing.assert_close(_sums(listed, text, 3), _sums(dense, text, 3))
    torch.testing.assert_close(_sums(dense, text, 3)[0], listed.to_dense()[:2].sum(0))


def test_a_task_from_end_to_end(model: str) -> None:
    subject = load_subject(model)
    texts = made_up_texts(60)
    pairs = [(text.upper(), "loud") for text in texts] + [(text, "quiet") for text in texts]
    task = checked("case", pairs, last=False, token=False)
    found = probe_task(
        subject,
        {"1/neurons": (neurons(subject, 1), subject.place(1, "mlp"))},
        task,
        ProbeProtocol(tokens=16, splits=2, top=8),
    )
    (layer,) = found.readers.values()
    assert found.labels == {"loud": 60, "quiet": 60} and found.read == "beginning"
    assert [each.label for each in layer.classes] == ["loud", "quiet"]
    assert layer.f1 == pytest.approx(np.mean([each.f1 for each in layer.classes]))
    assert layer.f1_always == pytest.approx(np.mean([each.f1_always for each in layer.classes])) == pytest.approx(2 / 3)
    assert layer.f1 > 0.6 and layer.f1 > layer.f1_random  # capitals are other tokens
    with pytest.raises(ValueError, match=r"leaves too little to probe on 12 texts"):
        probe_task(subject, {}, task, ProbeProtocol(samples=12))


def test_the_table_shows_the_baseline_and_an_interval_within_0_and_1() -> None:
    """Two splits that differ much have an interval beyond the range of F1."""
    draw = np.random.default_rng(0)
    positive = np.arange(80) < 20
    probe, f1_by_split = _class("x", draw.random((80, 9)).astype(np.float32), positive, ProbeProtocol(splits=2))
    other = replace(probe, label="y", f1_always=0.8)
    reader = ReaderProbe(0.6, 1.328, 0.3, 0.7, (probe.f1_always + 0.8) / 2, [probe, other])
    assert probe.f1_always == pytest.approx(0.4) and len(f1_by_split) == 2 and reader.interval == "0.000 to 1.000"
    assert replace(reader, half=0.05).interval == "0.550 to 0.650" and replace(reader, half=None).interval is None
    result = ProbeResult("t", 80, 3, {"x": 20, "y": 60}, {}, 16, "beginning", 100, 2, {"1/n": reader})
    assert ProbeResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    header, _, line = ([cell.strip() for cell in row.split("|")[1:-1]] for row in result.table().splitlines()[:3])
    shown = dict(zip(header, line, strict=True))
    assert shown["95% interval"] == "0.000 to 1.000" and shown["always yes"] == "0.600" and shown["mean F1"] == "0.600"
    assert "+-" not in result.table() and "95% interval: of the mean over 2 splits, cut to 0 and 1" in result.table()
    assert "80 texts of 2 classes" in result.table() and "3 texts could not be read" in result.table()


def test_a_label_that_is_rare_among_the_texts_that_are_read_is_left_out(model: str) -> None:
    """Fifteen texts of a label in the file, of which the sample has fewer than ten: the others are probed."""
    subject = load_subject(model)
    readers = {"n": (neurons(subject, 0), subject.place(0, "mlp"))}
    texts = [f"the cat {i}" for i in range(60)] + [f"a big dog {i}" for i in range(60)] + ["tree"] * 15
    task = Labelled("t", texts, ["cat"] * 60 + ["dog"] * 60 + ["tree"] * 15, left_out={"odd": 2})
    result = probe_task(subject, readers, task, ProbeProtocol(samples=50, splits=2, top=4))
    drawn = np.random.default_rng(0).permutation(135)[:50]
    trees = int((drawn >= 120).sum())
    assert 0 < trees < LEAST and set(result.labels) == {"cat", "dog"}
    assert result.left_out == {"odd": 2, "tree": trees} and result.texts == 50 - trees == sum(result.labels.values())
    assert f"left out, with fewer than {LEAST} texts: odd (2 texts), tree ({trees} texts)" in result.table()
    two = Labelled("t", texts[60:], task.labels[60:])
    with pytest.raises(ValueError, match=r"leaves too little to probe on 12 texts, .*tree \(.*a class needs 10 texts"):
        probe_task(subject, readers, two, ProbeProtocol(samples=12))


def test_tasks_from_files(tmp_path: Path) -> None:
    lines = [{"text": f"t{i}", "label": i % 2} for i in range(40)] + [{"text": "rare", "label": 7}]
    raw = "\n".join(json.dumps(line) for line in lines).encode()
    (tmp_path / "odd.jsonl.zst").write_bytes(zstandard.compress(raw))
    found = labelled(str(tmp_path / "odd.jsonl.zst"))
    assert found.name == "odd" and len(found.texts) == 40 and set(found.labels) == {"0", "1"}
    assert found.left_out == {"7": 1}
    assert len(labelled(str(tmp_path / "odd.jsonl.zst"), limit=30).texts) == 30

    def said(text: str) -> str:
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ValueError) as caught:
            labelled(str(tmp_path / "bad.jsonl"))
        return str(caught.value)

    good = json.dumps({"text": "a", "label": "x"})
    assert "needs two labels with at least 10" in said("\n".join([good] * 30))
    assert "needs two labels" in said("\n".join(json.dumps({"text": "a", "label": i % 2}) for i in range(LEAST)))
    assert "line 2 of" in said(f'{good}\n{{"text": "a"}}') and "no label" in said('{"text": "a"}')
    assert "line 1 of" in said("nonsense") and "has no text" in said('{"label": 1}')
    assert "the labels none" in said("")
    with pytest.raises(ValueError, match="there is no file"):
        labelled(str(tmp_path / "missing.jsonl"))


def test_made_up_surnames_are_classified_by_their_endings() -> None:
    pairs = surnames(200)
    assert pairs == surnames(200) and len({text.split()[1] for text, _ in pairs}) == 200
    from glassmoe.text.labelled import ENDINGS

    for text, origin in pairs:
        assert text.endswith(ENDINGS[origin])
    task = labelled("surnames", 300)
    assert task.token and task.last and len(set(task.labels)) == 5


def test_settings_that_make_no_sense_say_so() -> None:
    with pytest.raises(ValueError, match="splits is 0; give a number above 0"):
        ProbeProtocol(splits=0)
    with pytest.raises(ValueError, match="test is 1"):
        ProbeProtocol(test=1)
