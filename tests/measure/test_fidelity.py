"""The reconstruction in place of the stream, against a forward pass written out block by block and sums written out
token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import AUTOENCODERS, CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.reconstruction import ReconstructionSums
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.harvest import activations_at, harvest
from glassmoe.layers.features import Features
from glassmoe.measure.fidelity import Fidelity, fidelity
from glassmoe.model import GLU, Dense, GlassConfig, GlassForCausalLM
from glassmoe.model.random_twins import random_coder
from glassmoe.model.subject import Place, place_in, replaced

WIDTH, LAYERS = 16, 3


def make_model() -> GlassForCausalLM:
    torch.manual_seed(0)
    return GlassForCausalLM(
        GlassConfig(ffn="relu", width=WIDTH, layers=LAYERS, heads=2, active_width=32, context=64, init_std=0.3)
    ).eval()


def make_coder(kind: str = "topk", **settings: object) -> Coder:
    torch.manual_seed(1)
    config = CoderConfig(layer=1, kind=kind, **{"features": 40, "k": 6, **settings})
    coder = build_coder(config, WIDTH, 100, 1000)
    for name, p in coder.named_parameters():
        if name != "w_dec":
            torch.nn.init.normal_(p, std=0.3)
    return coder


def fidelity_of(
    model: GlassForCausalLM, coder: Coder, place: Place, rows: Rows, indices: object, micro_rows: int
) -> Fidelity:
    return fidelity(model, {"coder": (coder, place)}, rows, indices, micro_rows)["coder"]


def rows_of(games: Path) -> Rows:
    return Rows(Corpus.open(games).split("valid"), "games:64")


def by_blocks(model: GlassForCausalLM, tokens: torch.Tensor, after: dict[int, object]) -> tuple[torch.Tensor, ...]:
    """Logits and the streams after each block of one row of tokens (1, S); `after[layer]` changes the stream."""
    decoder = model.model
    x = decoder.tokens(tokens) + decoder.positions(torch.arange(tokens.shape[1]))
    streams = []
    for number, block in enumerate(decoder.layers):
        x = block(x, None, None)[0]
        streams.append(x)
        if number in after:
            x = after[number](x)
    return model.lm_head(decoder.norm(x)), torch.cat(streams)


@torch.no_grad()
def naive(model: GlassForCausalLM, coder: Coder, layer: int, rows: Rows, indices: list[int]) -> dict[str, float]:
    def code(x: torch.Tensor) -> torch.Tensor:
        return (coder.features(x[0]).to_dense() @ coder.w_dec + coder.b_dec).unsqueeze(0)

    ways = {"loss": {}, "loss_spliced": {layer: code}, "loss_zero": {layer: lambda x: 0 * x}}
    sums, labels = dict.fromkeys(ways, 0.0), 0
    seen, rebuilt, dense = [], [], []
    for index in indices:
        tokens, lengths = rows.batch([index])
        row = torch.from_numpy(tokens).long()[:, : int(lengths[0])]
        given = row[:, : rows.length - 1]
        for name, after in ways.items():
            logits, streams = by_blocks(model, given, after)
            sums[name] += sum(
                float(F.cross_entropy(logits[0, i], row[0, i + 1], reduction="sum")) for i in range(row.shape[1] - 1)
            )
            if name == "loss":
                seen.append(streams[layer])
                rebuilt.append(code(streams[layer : layer + 1])[0])
                dense.append(coder.features(streams[layer]).to_dense())
        labels += row.shape[1] - 1
    x, y, f = (torch.cat(each).double() for each in (seen, rebuilt, dense))
    found = {name: total / labels for name, total in sums.items()}
    zero, spliced_, loss = found["loss_zero"], found["loss_spliced"], found["loss"]
    return {
        **found,
        "loss_increase": spliced_ - loss,
        "loss_recovered": (zero - spliced_) / (zero - loss),
        "variance_explained": float(1 - (x - y).var(0, correction=0).sum() / x.var(0, correction=0).sum()),
        "squared_error": float((x - y).square().sum() / len(x)),
        "normalised_mse": float((x - y).square().sum() / (x - x.mean(0)).square().sum()),
        "l0": float((f > 0).sum() / len(f)),
        "alive": float((f > 0).any(0).double().mean()),
        "largest_share": float(f.clamp(min=0).sum(0).max() / f.clamp(min=0).sum()),
        "tokens": len(x),
        "rows": len(indices),
    }


@pytest.mark.parametrize("kind", AUTOENCODERS)
@pytest.mark.parametrize("layer", [0, 2])
def test_fidelity_against_the_naive_twin(kind: str, layer: int, noise_games: Path) -> None:
    model, coder, rows = make_model(), make_coder(kind).eval(), rows_of(noise_games)
    indices, place = [3, 0, 11, 7, 5], place_in(model, layer, "stream")
    assert len({int(n) for n in rows.batch(indices)[1]}) > 2  # rows with padding, and full ones
    expected = naive(model, coder, layer, rows, indices)
    coder.train()  # measuring is done in evaluation mode all the same
    found = fidelity_of(model, coder, place, rows, indices, micro_rows=2).to_dict()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert coder.training and not model.training and int(coder.seen) == 0
    assert found == pytest.approx(
        fidelity_of(model, coder, place, rows, np.array(indices), micro_rows=5).to_dict(), rel=1e-4
    )


def test_a_perfect_coder_loses_nothing_and_an_empty_one_everything(noise_games: Path) -> None:
    """With 2 D features, a feature for each sign of each entry, l1 can write the stream as it is."""
    model, rows = make_model(), rows_of(noise_games)
    coder = build_coder(CoderConfig(layer=1, kind="l1", features=2 * WIDTH), WIDTH, 100, 1000)
    with torch.no_grad():
        for weight in (coder.w_enc, coder.w_dec):
            weight.copy_(torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]))
    found = fidelity_of(model, coder, place_in(model, 1, "stream"), rows, range(8), 4)
    assert found.loss_recovered == pytest.approx(1, abs=1e-5) and found.l0 == pytest.approx(WIDTH)
    assert found.variance_explained == pytest.approx(1) and found.normalised_mse == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        coder.w_dec.zero_()
    found = fidelity_of(model, coder, place_in(model, 1, "stream"), rows, range(8), 4)
    assert found.loss_spliced == pytest.approx(found.loss_zero) and found.loss_recovered == pytest.approx(0)
    assert found.variance_explained == pytest.approx(0) and found.normalised_mse > 1
    # A model of which nothing depends on the stream has nothing to recover.
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert fidelity_of(model, coder, place_in(model, 1, "stream"), rows, range(8), 4).loss_recovered is None


def test_figures_by_hand() -> None:
    """The stream at two tokens, (1, 3) and (3, 3); a coder that writes (2, 2) always: errors (-1, 1) and (1, 1)."""
    coder = Dense(2, 3, "relu", bias=True)
    with torch.no_grad():
        coder.w_dec.zero_()
        coder.b_dec.fill_(2)
        coder.w_enc.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1]]))
        coder.b_enc.copy_(torch.tensor([-2.0, 0, 0]))
    sums = ReconstructionSums()
    sums.add(coder, torch.tensor([[1.0, 3]]))
    sums.add(coder, torch.tensor([[3.0, 3]]))
    # Variances of the stream 1 and 0, of the error 1 and 0; mean squared error 2, features (0, 0, 3) and (1, 0, 3).
    found = sums.finish().to_dict()
    expected = {"squared_error": 2, "variance_explained": 0, "normalised_mse": 2, "l0": 1.5, "alive": 2 / 3}
    assert found == pytest.approx({**expected, "tokens": 2, "largest_share": 6 / 7})


def test_largest_share_by_hand() -> None:
    """Listed features; a value below 0 counts as 0, and a coder that is silent has a share of 0."""
    coder = Dense(1, 3, "relu")
    sums = ReconstructionSums()
    for x, values, ids in ((1.0, [[2.0, -5]], [[0, 2]]), (2.0, [[1.0, 3]], [[2, 1]])):
        coder.features = lambda _, v=values, i=ids: Features(torch.tensor(v), 3, torch.tensor(i))
        sums.add(coder, torch.tensor([[x]]))
    assert sums.finish().largest_share == pytest.approx(3 / 6) and sums.finish().alive == 1
    silent = ReconstructionSums()
    coder.features = lambda _: Features(torch.zeros(2, 3), 3)
    silent.add(coder, torch.tensor([[1.0], [2.0]]))
    assert silent.finish().largest_share == 0


def test_gated_units_below_0_are_active() -> None:
    """Products of an open gate and a linear branch have either sign."""
    coder = GLU(2, 3, "relu")
    coder.features = lambda _: Features(torch.tensor([[2.0, -1, 0], [0, -3, 0]]), 3)
    sums = ReconstructionSums()
    sums.add(coder, torch.tensor([[1.0, 3], [2.0, 1]]))
    found = sums.finish()
    assert found.l0 == 1.5 and found.alive == pytest.approx(2 / 3) and found.largest_share == pytest.approx(4 / 6)


def test_the_hook_is_taken_out_again() -> None:
    model, coder = make_model(), make_coder()
    tokens = torch.randint(0, 32, (2, 20))
    before = model(input_ids=tokens).logits
    with spliced(model, coder, place_in(model, 1, "stream")):
        inside = model(input_ids=tokens).logits
    assert not torch.allclose(inside, before)
    with (
        pytest.raises(ZeroDivisionError),
        replaced(model, place_in(model, 0, "stream"), lambda _, y: torch.zeros_like(y)),
    ):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_under_bf16_autocast_the_coder_stays_in_float32() -> None:
    model, coder = make_model(), make_coder()
    tokens = torch.randint(0, 32, (2, 20))
    seen = []
    features = coder.features
    coder.features = lambda x: seen.append(features(x)) or seen[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16), spliced(model, coder, place_in(model, 1, "stream")):
        assert model(input_ids=tokens).logits.dtype == torch.bfloat16
    assert [f.values.dtype for f in seen] == [torch.float32]


def test_mistakes_are_named(noise_games: Path) -> None:
    model, coder, rows = make_model(), make_coder(), rows_of(noise_games)
    with pytest.raises(ValueError, match="layer 3 is not in this model: it has layers 0 to 2"):
        fidelity_of(model, coder, place_in(model, 3, "stream"), rows, [0], 1)
    with pytest.raises(ValueError, match="no rows to measure on"):
        fidelity_of(model, coder, place_in(model, 1, "stream"), rows, [], 1)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_coder_is_harvested_from_the_stream_after_its_layer(kind: str) -> None:
    model, coder = make_model(), make_coder(kind).eval()
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, 32, (7, 24)).astype(np.uint8), np.array([24, 20, 24, 13, 24, 24, 18])
    positions = np.stack([np.sort(rng.choice(n, 4, replace=False)) for n in lengths])
    with torch.no_grad():
        streams = [by_blocks(model, torch.from_numpy(row).long().unsqueeze(0), {})[1][1] for row in tokens]
        dense = [coder.features(stream).to_dense().numpy() for stream in streams]
    torch.testing.assert_close(activations_at(model, 1, "stream", tokens).x, torch.stack(streams), rtol=1e-4, atol=1e-5)
    found = harvest(model, 1, tokens, lengths, positions, sample=5, batch=3, coder=coder)
    got = found.rows if isinstance(found.rows, np.ndarray) else found.rows.toarray()
    assert isinstance(found.rows, np.ndarray) == (kind not in ("topk", "batchtopk"))
    np.testing.assert_allclose(got, np.concatenate([d[p] for d, p in zip(dense, positions, strict=True)]), atol=1e-5)
    sample = np.concatenate([d[:n] for d, n in zip(dense[:5], lengths, strict=False)])
    np.testing.assert_allclose(found.maxima_F, sample.max(0), rtol=1e-4, atol=1e-5)
    assert np.array_equal(found.alive_F, (sample != 0).any(0))
    assert found.l0 == pytest.approx((sample > 0).sum(1).mean())


def test_a_random_coder_is_one_before_its_fit() -> None:
    coder, x = make_coder("p-anneal"), torch.randn(30, WIDTH) + 2
    state = torch.get_rng_state()
    fresh = random_coder(coder, x, x)
    assert torch.equal(torch.get_rng_state(), state) and not fresh.training
    assert not torch.equal(fresh.w_dec, coder.w_dec) and torch.allclose(fresh.w_enc, 2 * WIDTH / 40 * fresh.w_dec)
    torch.testing.assert_close(fresh.b_dec, x.mean(0))
    assert torch.equal(fresh.w_dec, random_coder(coder, x, x).w_dec) and int(fresh.step) == 0
