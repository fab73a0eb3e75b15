"""The map of encoder rows: the share of neighbours by hand, experts that read alike, and what is refused."""

import sys

import pytest
import torch

from glassmoe.measure.encoder_map import encoder_map, neighbour_share
from glassmoe.model import GlassConfig, GlassForCausalLM


def make(ffn: str = "moe-x") -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 64}
    return GlassForCausalLM(GlassConfig(ffn=ffn, **config)).eval()


def test_neighbour_share_by_hand() -> None:
    # Directions at 0, 10, 30, 90 and 95 degrees (lengths do not matter); experts a a b b b. The nearest of each: 10 (a,
    # own), 0 (own), 10 (a, not own), 95 (own), 90 (own): 4 of 5.
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 30.0, 90.0, 95.0]))
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0, 3.0]).unsqueeze(1)
    expert = torch.tensor([0, 0, 1, 1, 1])
    assert neighbour_share(rows, expert, 1) == pytest.approx(4 / 5)
    # The nearest two: 10 30, 0 30, 10 0, 95 30, 90 30: own are 1, 1, 0, 2, 2 of 2.
    assert neighbour_share(rows, expert, 2) == pytest.approx(6 / 10)
    # All others: chance, given how many of each there are.
    assert neighbour_share(rows, expert, 4) == pytest.approx((1 + 1 + 2 + 2 + 2) / 20)
    with pytest.raises(ValueError, match="5 rows have no 5 neighbours each; give 1 to 4"):
        neighbour_share(rows, expert, 5)


def test_many_rows_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, expert = torch.randn(50, 4), torch.arange(50) % 3
    whole = neighbour_share(rows, expert, 5)
    monkeypatch.setattr("glassmoe.measure.encoder_map.CHUNK", 7)
    assert neighbour_share(rows, expert, 5) == whole


def test_experts_that_read_alike_are_separated_from_random_ones() -> None:
    model = make()
    random = encoder_map(model, 1, rows=48, neighbours=5)
    assert random.chance == pytest.approx(15 / 63)
    assert abs(random.neighbour_share - random.chance) < 0.1
    with torch.no_grad():
        layer = model.feed_forwards()[1]
        layer.w_enc += torch.eye(4, 16).unsqueeze(1)
    planted = encoder_map(model, 1, rows=48, neighbours=5)
    assert planted.neighbour_share == 1
    assert planted.layer == 1 and planted.rows_drawn == 48 and len(planted.points) == 48
    assert [point[0] for point in planted.points] == sorted([0, 1, 2, 3] * 12)
    # The map shows it too: each row is nearest, on the map, to rows of its own expert.
    places = torch.tensor([point[2:] for point in planted.points])
    nearest = (torch.cdist(places, places) + 1e9 * torch.eye(48)).argmin(1)
    experts = torch.tensor([point[0] for point in planted.points])
    assert (experts[nearest] == experts).float().mean() > 0.9


def test_seeded_and_within_the_requested_rows() -> None:
    model = make()
    first, again, other = (encoder_map(model, 0, rows=30, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.points != other.points
    assert first.rows_drawn == 28  # 7 of each of 4 experts
    assert first.neighbour_share == other.neighbour_share  # taken among all 64 rows
    assert encoder_map(model, 0, rows=1000).rows_drawn == 64


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="layer 2 is not in this model: it has layers 0 to 1"):
        encoder_map(make(), 2)
    with pytest.raises(ValueError, match="layer 0 of a relu model has no experts"):
        encoder_map(make("relu"), 0)
    with pytest.raises(ValueError, match="7 rows are fewer than two for each of 4 experts; give at least 8"):
        encoder_map(make(), 0, rows=7)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in [name for name in sys.modules if name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ValueError, match=r'needs scikit-learn, which is not installed: pip install "glassmoe\[plots\]"'
    ):
        encoder_map(make(), 0)
