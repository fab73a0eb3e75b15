"""Modules that add the residual stream inside, under any name, or normalise the sum: read and replaced right, or
refused by name."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frozen_models import random_model
from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.measure.fidelity import fidelity
from glassmoe.model.loss import count_labels, next_token_loss
from glassmoe.model.mlp import mlp_parts
from glassmoe.model.modules import try_module
from glassmoe.model.subject import activations, place_in, replaced
from text_files import made_up_texts, prepared

VOCABULARY, WIDTH, UNITS = 300, 16, 24
TOKENS = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
USUAL = {
    "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCABULARY,
    "intermediate_size": UNITS, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**USUAL, "is_decoder": True, "bos_token_id": 1, "eos_token_id": 2}
POST_NORM = {
    "Bert": "bert.encoder",
    "BertGeneration": "bert.encoder",
    "Roberta": "roberta.encoder",
    "Electra": "electra.encoder",
    "RoFormer": "roformer.encoder",
    "RemBert": "rembert.encoder",
    "BigBird": "bert.encoder",
    "Data2VecText": "data2vec_text.encoder",
}
"""Families whose module after the hidden units adds its argument `input_tensor` and normalises the sum."""
PRE_NORM = {"MegatronBert": "bert.encoder", "XLMRobertaXL": "roberta.encoder"}
"""Those that add it and return the sum."""
SETTINGS: dict[str, dict[str, Any]] = {
    "BigBird": {"attention_type": "original_full"},
    "Electra": {"embedding_size": WIDTH},
    "RemBert": {"input_embedding_size": WIDTH, "output_embedding_size": WIDTH},
}


def bert_like(family: str, **settings: Any) -> Any:
    return random_model(f"{family}Config", {**DECODER, **SETTINGS.get(family, {}), **settings})


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_of_the_sum_is_refused_with_the_module_inside(family: str) -> None:
    model, path = bert_like(family), f"{POST_NORM[family]}.layer.{{}}.output"
    here = path.replace("{}", "1")
    with pytest.raises(ValueError, match=rf"{here} does more with its argument input_tensor .*: {here}.dense$"):
        place_in(model, 1, "mlp-out", path)
    with pytest.raises(ValueError, match=rf"{here} reads 24 numbers per token and writes 16"):
        place_in(model, 1, "mlp", path)
    place = place_in(model, 1, "mlp-out", f"{path}.dense")
    assert (place.module, place.residual) == (f"{here}.dense", False)
    # With as many hidden units as the stream has entries, the module could be taken for an MLP.
    square = bert_like(family, intermediate_size=WIDTH)
    for site in ("mlp", "mlp-out"):
        with pytest.raises(ValueError, match=rf"{here} does more with its argument input_tensor .*: {here}.dense$"):
            place_in(square, 1, site, path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not known by name") as error:
        place_in(square, 1, "mlp")
    assert "output" not in str(error.value).replace("output.dense", "")


@pytest.mark.parametrize("family", PRE_NORM)
@torch.no_grad()
def test_a_sum_is_taken_apart_by_any_name_of_the_stream(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, path = bert_like(family), f"{PRE_NORM[family]}.layer.{{}}.output"
    place = place_in(model, 1, "mlp-out", path)
    assert (place.residual, place.argument) == (True, "input_tensor")
    dense = place_in(model, 1, "mlp-out", f"{path}.dense")
    both = activations(model, [place, dense], TOKENS)
    torch.testing.assert_close(both[place].y, both[dense].y, rtol=1e-4, atol=1e-4)
    usual = model(input_ids=TOKENS).logits
    with replaced(model, place, lambda _, y: y):
        torch.testing.assert_close(model(input_ids=TOKENS).logits, usual, rtol=1e-3, atol=1e-3)
    # loss_zero leaves the stream as it is.
    folder = tmp_path_factory.mktemp("text") / "data"
    prepared(folder, made_up_texts(100), tokenizer=f"train:{VOCABULARY}", valid_share=0.3)
    rows = Rows(Corpus.open(folder).split("valid"), "packed:17")
    torch.manual_seed(0)
    config = CoderConfig(layer=1, kind="topk", site="mlp-out", features=32, k=4).complete(WIDTH, 1)
    coder = build_coder(config, WIDTH, 1, 1).eval()
    measured = fidelity(model, {"a": (coder, place)}, rows, np.arange(6), 4)["a"]
    tokens, lengths = (torch.from_numpy(array).long() for array in rows.batch(np.arange(6)))
    linear = model.get_submodule(dense.module)
    linear.forward = lambda x: x.new_zeros(*x.shape[:-1], WIDTH)
    zero = float(next_token_loss(model, tokens, lengths)[0]) / count_labels(lengths.numpy())
    assert measured.loss_zero == pytest.approx(zero, rel=1e-5)
    assert abs(measured.loss_zero - math.log(model.config.vocab_size)) > 1e-2


class Mlp(nn.Module):
    """GPT-2's MLP with the stream inside, in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj, self.act = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH), nn.GELU()
        self.norm = nn.LayerNorm(WIDTH)
        self.factor = nn.Parameter(torch.tensor(0.5))

    def adds(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return y


class Skip(Mlp):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.adds(x) + skip


class InPlace(Mlp):
    """Its output is its second argument, changed."""

    def forward(self, x: Tensor, hidden_states: Tensor) -> Tensor:
        hidden_states += self.adds(x)
        return hidden_states


class NormedResidual(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = self.norm(self.adds(x) + residual)
        return y


class FunctionalNorm(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        inner = nn.functional.gelu(x @ self.c_fc.weight.T)
        return nn.functional.layer_norm(inner @ self.c_proj.weight.T + residual, (WIDTH,))


class Scaled(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.adds(x) + self.factor * residual


class Several(Mlp):
    def forward(self, x: Tensor, streams: tuple[Tensor]) -> Tensor:
        return self.adds(x) + streams[0]


class OwnInput(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # noqa: ARG002
        y: Tensor = self.norm(x + self.adds(x))
        return y


class OwnInputFunctional(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # noqa: ARG002
        inner = nn.functional.gelu(x @ self.c_fc.weight.T)
        return nn.functional.layer_norm(x + inner @ self.c_proj.weight.T, (WIDTH,))


class Unused(Mlp):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return self.adds(x)


class Block(nn.Module):
    """Calls the MLP with the stream."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.ln_2, self.mlp = nn.LayerNorm(WIDTH), mlp

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = self.mlp(self.ln_2(x), (x,) if isinstance(self.mlp, Several) else x.clone())
        return out


def with_mlp(mlp: type[Mlp]) -> Any:
    model = random_model(
        "GPT2Config", {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 40}
    )
    torch.manual_seed(1)
    model.transformer.h[1] = Block(mlp()).eval()
    return model


PATH = "transformer.h.{}.mlp"
TEN = TOKENS % 60


@torch.no_grad()
def test_the_stream_as_any_second_argument() -> None:
    model = with_mlp(Skip)
    place = place_in(model, 1, "mlp", PATH)
    assert (place.residual, place.argument) == (True, "skip")
    caught = activations(model, [place], TEN)[place]
    inner = model.get_submodule(place.module)
    torch.testing.assert_close(caught.y, inner.adds(caught.x), rtol=1e-4, atol=1e-5)
    usual = model(input_ids=TEN).logits
    with replaced(model, place, lambda x, _: inner.adds(x)):
        torch.testing.assert_close(model(input_ids=TEN).logits, usual, rtol=1e-4, atol=1e-4)
    assert mlp_parts(inner, WIDTH) is not None


@pytest.mark.parametrize(
    ("mlp", "what"),
    [
        (NormedResidual, "does more with its argument residual than add it .*: transformer.h.1.mlp.c_proj$"),
        (FunctionalNorm, "does more with its argument residual than add it .* computes what is added$"),
        (Scaled, "does more with its argument residual than add it"),
        (Several, "does more with its argument streams than add it"),
        (InPlace, "changes its arguments in place"),
        (OwnInput, "adds its own input to its output and normalises .*: transformer.h.1.mlp.c_proj$"),
        (OwnInputFunctional, "adds its own input to its output and normalises"),
    ],
)
@pytest.mark.parametrize("site", ["mlp", "mlp-out"])
def test_what_cannot_be_taken_apart_is_refused(mlp: type[Mlp], what: str, site: Any) -> None:
    with pytest.raises(ValueError, match=f"transformer.h.1.mlp {what}"):
        place_in(with_mlp(mlp), 1, site, PATH)


def test_an_argument_that_is_not_added_is_no_bypass() -> None:
    model = with_mlp(Unused)
    place = place_in(model, 1, "mlp", PATH)
    assert not place.residual
    # Attention mixes positions through matrices alone, and blocks add their input.
    assert try_module(model, "transformer.h.0.attn").bypasses == ()
    (bypass,) = try_module(model, "transformer.h.0").bypasses
    assert bypass.is_input and bypass.is_added


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Mixtral", {"num_key_value_heads": 1, "num_experts_per_tok": 2, "num_local_experts": 4}),
        ("Olmoe", {"num_key_value_heads": 1, "num_experts_per_tok": 2, "num_experts": 4}),
        (
            "Qwen2Moe",
            {"num_key_value_heads": 1, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 8},
        ),
        ("Llama", {}),
    ],
)
def test_experts_and_gates_are_no_bypass(family: str, settings: dict[str, Any]) -> None:
    model = random_model(f"{family}Config", {**USUAL, **settings})
    assert try_module(model, "model.layers.1.mlp").bypasses == ()


def test_positions_before_rows_are_refused() -> None:
    """XLNet computes with positions before rows; its MLP normalises the sum with its own input."""
    settings = {"d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": VOCABULARY}
    model = random_model("XLNetConfig", settings)
    with pytest.raises(ValueError, match=r"writes \(8, 1, 16\) for one row of 8 tokens; expected rows, then positions"):
        place_in(model, 1, "mlp", "transformer.layer.{}.ff")
    stream = place_in(model, 1, "stream")
    with pytest.raises(ValueError, match=r"positions before rows"):
        activations(model, [stream], TOKENS)
