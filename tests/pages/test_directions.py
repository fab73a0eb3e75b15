"""What features read and write, against plain loops."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from explored import chess_model, games, store_of, text_run
from glassmoe.inspect.readers import open_readers
from glassmoe.layers.features import Features
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import activations, load_subject
from glassmoe.pages.explore.directions import (
    example_writes,
    moved_logits,
    nearest,
    read_rows,
    unit_writes,
    written_rows,
)

LINEAR = ("gelu", "relu", "relu-topk", "geglu", "moe-x", "switch", "peer")


def layer_of(ffn: str) -> object:
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 32, "num_experts": 4, "context": 16}
    return GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **shape)).feed_forwards()[0].eval()


@pytest.mark.parametrize("ffn", LINEAR)
def test_what_one_unit_writes(ffn: str) -> None:
    layer = layer_of(ffn)
    with torch.no_grad():
        found_FD = unit_writes(layer, torch.device("cpu"))
        features = layer.features(torch.randn(5, 16))
        more = layer.write(features.add([3], 1.0)) - layer.write(features)
    torch.testing.assert_close(found_FD[3].expand(5, -1), more, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_FD, layer.w_dec.detach().reshape(layer.num_features, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ffn", [*LINEAR, "solu", "monet-hd", "monet-vd"])
def test_what_features_read_is_what_raises_them(ffn: str) -> None:
    layer = layer_of(ffn)
    rows_FD = read_rows(layer)
    assert rows_FD.shape == (layer.num_features, 16)
    w_enc = layer.w_enc.detach().reshape(-1, 16)
    assert torch.equal(rows_FD, w_enc)


def test_neurons_of_others_read_their_rows(tmp_path: Path) -> None:
    subject = load_subject(str(text_run(tmp_path)), "cpu")
    layer = neurons(subject, 1)
    mlp = subject.model.get_submodule("transformer.h.1.mlp")
    x_TD = torch.randn(3, 16)
    torch.testing.assert_close(mlp.act(x_TD @ read_rows(layer).T + mlp.c_fc.bias), layer.features(x_TD).values)


@pytest.mark.parametrize("ffn", ["monet-hd", "monet-vd", "moe-x"])
def test_what_is_written_at_examples_against_a_loop(ffn: str, tmp_path: Path) -> None:
    run = chess_model(tmp_path / "run", ffn)
    store = store_of(run, games(tmp_path / "games"), [1])
    subject, readers = open_readers(str(run), [1], device="cpu")
    (reader,) = readers.values()
    found_FD = example_writes(subject, reader.layer, reader.place, store)
    some = [int(f) for f in np.argsort(-store.counts_F)[:3]] + [int(store.counts_F.argmin())]
    for feature in some:
        top, each = store.top(feature, 4), []
        for e in range(len(top)):
            row, place = int(top.rows_E[e]), int(top.starts_E[e] + top.strengths_EL[e].argmax())
            tokens = torch.from_numpy(store.rows_RN[row : row + 1].astype(np.int64))
            x_SD = activations(subject.model, [reader.place], tokens)[reader.place].x[0]
            with torch.no_grad():
                features: Features = reader.layer.features(x_SD)
                without = reader.layer.write(features.ablate([feature]))
                strength = features.select([feature])[place, 0]
                each.append((reader.layer.write(features) - without)[place] / strength)
        expected = torch.stack(each).mean(0) if each else torch.zeros(16)
        torch.testing.assert_close(found_FD[feature], expected, rtol=2e-3, atol=1e-4)


def test_solu_writes_its_rows_times_the_gain(tmp_path: Path) -> None:
    run = chess_model(tmp_path / "run", "solu")
    store = store_of(run, games(tmp_path / "games"), [1])
    subject, readers = open_readers(str(run), [1], device="cpu")
    layer = readers["1/solu"].layer
    rows_FD = written_rows(subject, layer, readers["1/solu"].place, store)
    # With the norm's mean and scale held still, a little more of a feature moves the output along its row.
    f_F = torch.rand(1, layer.num_features)
    mean, scale = f_F.mean(), (f_F.var(correction=0) + layer.norm.eps).sqrt()
    still = lambda f: (layer.norm.weight * (f - mean) / scale) @ layer.w_dec  # noqa: E731
    moved = still(f_F + F.one_hot(torch.tensor([2]), layer.num_features)) - still(f_F)
    torch.testing.assert_close(moved[0] * scale, rows_FD[2], rtol=1e-3, atol=1e-4)


def test_nearest_by_hand_and_against_a_loop() -> None:
    rows = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [-1, 0], [0, 0]])
    found = nearest(rows, 2)
    assert found.features_FK[0].tolist() == [1, 2] and found.features_FK[4].tolist() == [-1, -1]
    assert 4 not in found.features_FK[:4] and found.cosines_FK[0][1] == pytest.approx(0)
    torch.manual_seed(0)
    rows = torch.randn(37, 5)
    found = nearest(rows, 4)
    for f in range(37):
        cosines = F.cosine_similarity(rows[f : f + 1], rows).tolist()
        order = sorted((g for g in range(37) if g != f), key=lambda g: -cosines[g])[:4]
        assert found.features_FK[f].tolist() == order
        np.testing.assert_allclose(found.cosines_FK[f], [cosines[g] for g in order], atol=1e-5)
    assert nearest(torch.randn(1, 5), 3).features_FK.shape == (1, 0)


def test_logits_against_a_loop(tmp_path: Path) -> None:
    subject = load_subject(str(chess_model(tmp_path / "run")), "cpu")
    rows_FD = torch.randn(6, 16)
    # The third row ends after one token, so that token 9 is no part of the text.
    text = {"rows_RN": np.array([[0, 3, 4], [5, 6, 3], [7, 9, 9]], np.uint8), "lengths_R": np.array([3, 3, 1])}
    up, down = moved_logits(subject, rows_FD, 3, SimpleNamespace(**text))
    present = [0, 3, 4, 5, 6, 7]
    w_VD = subject.model.lm_head.weight
    for f in range(6):
        logits = [float(w_VD[v] @ rows_FD[f]) for v in range(len(w_VD))]
        mean = sum(logits) / len(logits)
        order = sorted(present, key=lambda v: -logits[v])
        assert up.tokens_FK[f].tolist() == order[:3] and down.tokens_FK[f].tolist() == order[::-1][:3]
        np.testing.assert_allclose(up.values_FK[f], [logits[v] - mean for v in order[:3]], atol=1e-4)
    assert moved_logits(subject, rows_FD, 9, SimpleNamespace(**text))[0].tokens_FK.shape == (6, 6)
