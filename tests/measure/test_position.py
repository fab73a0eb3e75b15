"""Shares of variance that the position explains, and losses without it: by hand and on real small models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glassmoe.chess.tokens import CHARACTERS
from glassmoe.measure.position import PositionVariance, losses_without_position, relative
from glassmoe.measure.specialisation import experts_of
from glassmoe.model import GlassConfig, GlassForCausalLM, MoE
from glassmoe.model.swapping import own_layers


def _model(**changes: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, object] = {"width": 16, "layers": 2, "heads": 2, "active_width": 16, "num_experts": 4}
    shape |= {"context": 12, "vocab_size": 32, "ffn": "moe-x", "init_std": 0.5, **changes}
    return GlassForCausalLM(GlassConfig(**shape)).eval()  # type: ignore[arg-type]


def test_share_by_hand() -> None:
    """Two positions: values 1, 3 and 7, 9. Within: 2 + 2 over 4 - 2; over all: 40 over 4 - 1."""
    variance = PositionVariance(3)
    variance.add(torch.tensor([[1.0], [7.0]]), torch.tensor([0, 1]))
    variance.add(torch.tensor([[3.0], [9.0]]), torch.tensor([0, 1]))
    assert variance.share() == pytest.approx(1 - (4 / 2) / (40 / 3))
    assert variance.means().tolist() == [[2], [8], [0]]


def test_share_is_zero_by_chance_and_one_where_position_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(64).repeat(30)
    noise, decided = PositionVariance(64), PositionVariance(64)
    noise.add(torch.randn(len(position), 8, generator=generator), position)
    decided.add(torch.randn(64, 8, generator=generator)[position], position)
    share = noise.share()
    assert share is not None and abs(share) < 0.01
    assert decided.share() == pytest.approx(1)
    constant = PositionVariance(64)
    constant.add(torch.ones(len(position), 2), position)
    assert constant.share() is None


def test_position_is_seen_within_stretches_of_a_row() -> None:
    """A layer whose input depends on whether the position is even: equal in every longer stretch of a row."""
    model = _model(layers=1, context=256, experts_per_token=1)
    with torch.no_grad():
        model.model.layers[0].attention.out.weight.zero_()
        model.model.tokens.weight.mul_(0.3)
        model.model.positions.weight.copy_(torch.randn(2, 16).repeat(128, 1))
    tokens = np.random.default_rng(0).integers(0, 32, (120, 256))
    found = experts_of(model, tokens, np.full(120, 256), CHARACTERS)
    (layer,) = found.layers
    assert found.places == 256
    assert layer.stream_by_position is not None and layer.scores_by_position is not None
    assert layer.stream_by_position > 0.5 and layer.scores_by_position > 0.5
    assert layer.information["place"].share > 0.3


def test_losses_without_position_against_a_second_model() -> None:
    """The same scores, changed by a hook on a model of its own, token by token."""
    model = _model()
    rng = np.random.default_rng(1)
    tokens, lengths = rng.integers(0, 32, (5, 12)), np.array([12, 12, 7, 3, 12])
    mixtures = {i: layer for i, layer in own_layers(model).items() if isinstance(layer, MoE)}
    means = {i: torch.randn(12, 4, generator=torch.Generator().manual_seed(i)) for i in mixtures}
    with torch.inference_mode():
        before = model(torch.from_numpy(tokens)).logits
    loss, without = losses_without_position(model, mixtures, means, tokens, lengths, micro_rows=2)
    with torch.inference_mode():
        assert torch.equal(model(torch.from_numpy(tokens)).logits, before)

    def naive(changed: int | None) -> float:
        total, count = 0.0, 0
        for row, length in zip(tokens, lengths, strict=True):
            twin = _model()
            if changed is not None:
                layer = twin.feed_forwards()[changed]
                scores = layer.scores
                layer.scores = lambda x, scores=scores: scores(x) - means[changed][: len(x)]
            ids = torch.from_numpy(row[:length])
            with torch.inference_mode():
                logits = twin(ids[None], use_cache=False).logits[0]
            for place in range(length - 1):
                total += float(F.cross_entropy(logits[place], ids[place + 1]))
                count += 1
        return total / count

    assert loss == pytest.approx(naive(None), rel=1e-5)
    assert without == {i: pytest.approx(naive(i), rel=1e-5) for i in mixtures}
    assert len({round(each, 6) for each in (loss, *without.values())}) == 3


def test_relative_scores_by_hand() -> None:
    assert relative(torch.tensor([[1.0, 3.0], [5.0, 5.0]])).tolist() == [[-1, 1], [0, 0]]
