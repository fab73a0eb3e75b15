"""Layers and features take tokens of any leading shape, and give for each token what they give for a row of tokens."""

import pytest
import torch

from glassmoe.layers.dense import Dense
from glassmoe.layers.features import Features, FeedForward, linear_write
from glassmoe.layers.moe import MoE
from glassmoe.model import FEED_FORWARD, GlassConfig, build_feed_forward

WIDTH = 24
SHAPES = [(), (7,), (2, 5), (3, 2, 4), (2, 0)]


class Outsider(FeedForward):
    """Written for (T, D) alone, without `input_width`."""

    def __init__(self, config: GlassConfig):
        super().__init__()
        self.num_features = config.active_width
        self.w_enc, self.w_dec = (torch.nn.Parameter(torch.empty(config.active_width, config.width)) for _ in range(2))

    def features(self, x_TD: torch.Tensor) -> Features:
        assert x_TD.ndim == 2
        best = torch.relu(x_TD @ self.w_enc.T).topk(3, dim=1)
        return Features(best.values, self.num_features, best.indices, context=x_TD.mean(1, keepdim=True))

    def write(self, features: Features) -> torch.Tensor:
        assert features.values.ndim == 2
        return linear_write(features, self.w_dec, None) + features.context


def make(name: str) -> FeedForward:
    torch.manual_seed(0)
    ffn, _, gated = name.partition(" ")
    config = GlassConfig(
        ffn=ffn, width=WIDTH, active_width=48, num_experts=5, experts_per_token=2, bias=True, gated=bool(gated)
    )
    FEED_FORWARD["outsider"] = Outsider
    try:
        layer = build_feed_forward(config)
    finally:
        del FEED_FORWARD["outsider"]
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return layer.double().eval()


LAYERS = [*FEED_FORWARD, "moe-x gated", "switch gated", "outsider"]


def tokens_of(shape: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)


def in_one_row(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_leading_shape_gives_what_one_row_gives(name: str, shape: tuple[int, ...]) -> None:
    layer, x = make(name), tokens_of(shape)
    row = in_one_row(x)
    expected, features = layer.features(row), layer.features(x)
    assert features.values.shape == (*shape, expected.values.shape[-1])
    assert torch.equal(in_one_row(features.values), expected.values)
    assert torch.equal(in_one_row(features.to_dense()), expected.to_dense())
    for y, expected_y in ((layer.write(features), layer.write(expected)), (layer(x)[0], layer(row)[0])):
        assert y.shape == x.shape
        assert torch.equal(in_one_row(y), expected_y)
        wanted = [x, *layer.parameters()]
        weight = torch.linspace(-1, 1, max(1, y.numel()), dtype=y.dtype)[: y.numel()].cos()
        for found, reference in zip(
            *(
                torch.autograd.grad((out.flatten() * weight).sum(), wanted, allow_unused=True)
                for out in (y, expected_y)
            ),
            strict=True,
        ):
            assert (found is None) == (reference is None)
            assert found is None or torch.equal(found, reference)


@pytest.mark.parametrize("shape", SHAPES[:-1])
@pytest.mark.parametrize("name", ["gelu", "moe-x", "monet-vd", "peer", "outsider"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda f: f.scale([1, 4], -2.5),
        lambda f: f.set([1, 4], 1.5),
        lambda f: f.add([1, 4], 1.5),
        lambda f: f.ablate([1, 4]),
        lambda f: f.coalesce(),
    ],
)
def test_edits_of_every_leading_shape(name: str, shape: tuple[int, ...], edit) -> None:
    layer, x = make(name), tokens_of(shape).detach()
    expected, edited = edit(layer.features(in_one_row(x))), edit(layer.features(x))
    assert edited.values.shape[:-1] == shape
    assert torch.equal(in_one_row(edited.to_dense()), expected.to_dense())
    assert torch.equal(in_one_row(layer.write(edited)), layer.write(expected))
    chosen = edited.select([4, 1, 0])
    assert chosen.shape == (*shape, 3)
    torch.testing.assert_close(chosen, edited.to_dense()[..., [4, 1, 0]])


def test_features_of_two_leading_dimensions_by_hand() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]])
    ids = torch.tensor([[[2, 0, 2]], [[1, 3, 0]]])
    features = Features(values, 4, ids)
    assert features.to_dense().tolist() == [[[2, 0, 4, 0]], [[6, 4, 0, 5]]]
    assert features.select([2, 3]).tolist() == [[[4, 0]], [[0, 5]]]
    assert features.coalesce().ids.tolist() == [[[0, 2, 2]], [[0, 1, 3]]]
    assert features.coalesce().values.tolist() == [[[2, 4, 0]], [[6, 4, 5]]]
    assert features.set(3, 9.0).to_dense().tolist() == [[[2, 0, 4, 9]], [[6, 4, 0, 9]]]
    assert features.select([]).shape == (2, 1, 0)


@pytest.mark.parametrize("name", LAYERS)
def test_another_width_is_one_clear_error(name: str) -> None:
    layer = make(name)
    for x in (torch.randn(2, 5, WIDTH + 1), torch.randn(WIDTH - 1), torch.tensor(1.0)):
        for method in (layer.features, layer):
            with pytest.raises(ValueError, match=r"\w+ reads tensors of shape \(\.\.\., 24\), got \("):
                method(x.double())
    other = Features(torch.zeros(2, 3), 3)
    with pytest.raises(ValueError, match=f"has {layer.num_features} features, got features of a layer of 3"):
        layer.write(other)


def test_router_scores_of_any_leading_shape() -> None:
    layer, x = make("moe-x"), tokens_of((2, 5))
    assert isinstance(layer, MoE)
    assert torch.equal(layer.scores(x), layer.scores(in_one_row(x)).view(2, 5, 5))


def test_methods_take_their_arguments_by_name() -> None:
    layer = Dense(WIDTH, 8).requires_grad_(False)
    torch.nn.init.normal_(layer.w_enc)
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(layer.features(x_TD=x).values, layer.features(x).values)


def test_training_losses_stay_scalars() -> None:
    layer = make("switch").train()
    y, losses = layer(tokens_of((2, 5)))
    assert y.shape == (2, 5, WIDTH) and losses["balance"].shape == ()
