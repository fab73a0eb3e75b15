"""Steering against naive passes with the edit written out, figures by hand, and the verb from a run to its words."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.cli.main import main
from glassmoe.inspect.edit import Edit, features_of, spliced
from glassmoe.inspect.sample import FrequencyPenalty, Sampling, sampled
from glassmoe.measure.steering import agreement, digits, specialisation, steered
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import load_subject
from glassmoe.text.spelling import Spelling
from text_files import made_up_texts, prepared, random_gpt2

EIGHT = Sampling(8, samples=3, temperature=1.0)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("steering")
    prepared(folder / "text", made_up_texts(200), valid_share=0.3)
    return str(random_gpt2(folder / "model", folder / "text"))


@pytest.fixture(scope="module")
def chess(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = GlassConfig(
        ffn="moe-x", width=16, layers=2, heads=2, active_width=32, num_experts=4, experts_per_token=2, context=64,
        init_std=0.3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("chess") / "run"
    GlassForCausalLM(config).save_pretrained(path)
    return str(path)


def test_agreement_by_hand() -> None:
    """Cosines of (1,0), (0,2) and (3,3): 0, 1/sqrt 2, 1/sqrt 2."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert agreement(rows) == pytest.approx(2 / 3 / 2**0.5)
    assert agreement(torch.ones(4, 3)) == pytest.approx(1.0)
    # Cosines of 1, 0 and 0.
    assert agreement(torch.tensor([[1.0, 0], [2, 0], [0, 0]])) == pytest.approx(1 / 3)


def test_edits_and_whole_experts() -> None:
    layer = GlassForCausalLM(GlassConfig(ffn="moe-x", width=16, active_width=32, num_experts=4)).feed_forwards()[0]
    size = layer.num_features // 4
    assert features_of(layer, [1, 70 % size], [2]) == tuple(sorted({1, 70 % size, *range(2 * size, 3 * size)}))
    with pytest.raises(
        ValueError, match=rf"feature {4 * size} is not in this layer: it has features 0 to {4 * size - 1}"
    ):
        features_of(layer, [4 * size])
    with pytest.raises(ValueError, match="expert 4 is not in this layer: it has experts 0 to 3"):
        features_of(layer, experts=[4])
    assert (
        str(Edit("ablate", (1, 2, 3, 4, 5))) == "ablate 1,2,3,4 and 1 more" and str(Edit("add", (7,), 2)) == "add 7 2"
    )


def test_neurons_are_the_models_own_mlp(gpt2: str) -> None:
    subject = load_subject(gpt2)
    layer, mlp = neurons(subject, 1), subject.model.transformer.h[1].mlp
    x = torch.randn(5, subject.width)
    torch.testing.assert_close(layer(x)[0], mlp(x))
    torch.testing.assert_close(layer.features(x).values, mlp.act(mlp.c_fc(x)))
    assert not list(layer.parameters()) and layer.num_features == 4 * subject.width
    with pytest.raises(ValueError, match=r"layer 9 is not in this model"):
        neurons(subject, 9)


@pytest.mark.parametrize(
    "edit", [Edit("add", (3,), 50.0), Edit("scale", (3, 5), -4.0), Edit("ablate", tuple(range(40)))]
)
def test_the_shift_against_a_naive_pass(gpt2: str, edit: Edit) -> None:
    """The edited MLP written out by hand; KL and perplexity summed token by token."""
    subject = load_subject(gpt2)
    layer, place = neurons(subject, 1), subject.place(1, "mlp")
    found = steered(subject, layer, place, edit, "some words", EIGHT)
    kind, mlp = subject.kind(), subject.model.transformer.h[1].mlp
    given = len(kind.encode("some words"))
    with spliced(subject.model, layer, place):
        rows, _ = sampled(subject.model, "some words", kind, EIGHT)
    assert [kind.decode(row) for row in rows] == found.before.texts

    def edited(_: object, args: tuple, __: torch.Tensor) -> torch.Tensor:
        f = mlp.act(mlp.c_fc(args[0])).clone()
        for i in edit.features:
            f[..., i] = {"add": f[..., i] + edit.amount, "scale": f[..., i] * edit.amount, "ablate": 0 * f[..., i]}[
                edit.action
            ]
        return mlp.c_proj(f)

    kl, nats, positions = 0.0, [], 0
    for row in rows:
        ids = torch.tensor(np.asarray(row).astype(np.int64))[None]
        with torch.no_grad():
            plain = subject.model(input_ids=ids).logits[0].softmax(-1)
            handle = mlp.register_forward_hook(edited)
            changed = subject.model(input_ids=ids).logits[0].softmax(-1)
            handle.remove()
        for at in range(given - 1, ids.shape[1]):
            kl += float((plain[at] * (plain[at] / changed[at]).log()).sum())
            positions += 1
        nats += [-math.log(plain[at - 1, ids[0, at]]) for at in range(given, ids.shape[1])]
    assert found.shift == pytest.approx(kl / positions, rel=1e-3, abs=1e-6)
    assert found.before.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert found.shift > 0 and found.raised[0][1] >= found.raised[-1][1] > 0 > found.lowered[0][1]


def test_moved_tokens_are_text(gpt2: str) -> None:
    subject = load_subject(gpt2)
    moved = steered(subject, neurons(subject, 1), subject.place(1, "mlp"), Edit("add", (3,), 5.0), "the cat", EIGHT)
    shown = [token for token, _ in [*moved.raised, *moved.lowered]]
    assert len(shown) == 16 and not any(letter in token for token in shown for letter in "\u0120\u010a\u2581")
    kind = subject.kind()
    spelled = {Spelling(kind).one(token) for token in range(kind.size)}
    assert set(shown) <= spelled and any(token.startswith(" ") for token in spelled)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1234, "+0.123"), (-0.0312, "-0.031"), (0.00094, "+9.4e-04"), (-0.0001234, "-1.2e-04"), (3e-9, "+3.0e-09"),
        (0.0, "+0.000"), (1.0, "+1.000"),
    ],
)  # fmt: skip
def test_small_numbers_have_digits(value: float, shown: str) -> None:
    assert digits(value, 3, "+") == shown


def test_the_table_shows_no_effect_of_nothing(gpt2: str) -> None:
    subject = load_subject(gpt2)
    found = steered(subject, neurons(subject, 1), subject.place(1, "mlp"), Edit("add", (3,), 1e-3), "the cat", EIGHT)
    assert abs(found.raised[0][1]) < 1e-3
    assert "0.000" not in found.table() and "shift 0.0000" not in found.table()


def test_nothing_changes_without_a_change(gpt2: str) -> None:
    subject = load_subject(gpt2)
    found = steered(subject, neurons(subject, 0), subject.place(0, "mlp"), Edit("scale", (3,), 1.0), "word", EIGHT)
    assert found.before == found.after and found.shift == pytest.approx(0, abs=1e-9)


def test_frequency_penalty_by_hand() -> None:
    scores = FrequencyPenalty(0.5, prompt=1)(torch.tensor([[2, 0, 0, 1]]), torch.zeros(1, 4))
    assert scores.tolist() == [[-1.0, -0.5, 0.0, 0.0]]  # the prompt's token 2 is not counted


def test_specialisation_of_a_feature_that_writes_one_word(gpt2: str) -> None:
    """A direction that makes one token certain: its texts are alike, and unlikely under the model as it is."""
    subject = load_subject(gpt2)
    layer, place = neurons(subject, 2), subject.place(2, "mlp")
    sampling = Sampling(6, samples=4, temperature=1.0)
    plain, loud, mild = specialisation(subject, layer, place, [1, 2], 1000.0, "", sampling)
    assert plain.feature is None and loud.feature == 1 and len(loud.texts) == 4
    assert loud.agreement > plain.agreement and mild.agreement > plain.agreement
    assert 0 < plain.fluency < 1


def test_a_harmless_edit_is_as_far_from_the_reference_as_none(gpt2: str) -> None:
    """Texts without an edit get no lower agreement than texts of the same model with another seed."""
    subject = load_subject(gpt2)
    layer, place = neurons(subject, 2), subject.place(2, "mlp")
    plain, harmless = specialisation(subject, layer, place, [1], 1e-9, "", Sampling(6, samples=8, temperature=1.0))
    assert harmless.texts == plain.texts and harmless.agreement == pytest.approx(plain.agreement, abs=1e-4)
    assert abs(plain.agreement + 1 / 7) > 0.02  # what n texts have around their own mean
    # Without chance, all texts are those of the reference.
    plain, *_ = specialisation(subject, layer, place, [1], 1.0, "", Sampling(6, samples=3, temperature=0.0))
    assert plain.agreement == pytest.approx(0, abs=1e-6) or plain.agreement is None


def test_specialisation_of_a_model_of_our_own(chess: str) -> None:
    subject = load_subject(chess)
    found = specialisation(subject, neurons(subject, 0), subject.place(0, "mlp"), [5], 10.0, ";1.", EIGHT)
    assert [row.feature for row in found] == [None, 5] and -1 <= found[1].agreement <= 1


@pytest.mark.parametrize("words", ["--feature 5 --add 30", "--expert 1 --ablate", "--feature 3,4 --set 9"])
def test_the_verb_on_a_chess_model(chess: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = f"steer {chess} --layer 1 {words} --tokens 12 --samples 4"
    assert main([*start.split(), "--prompt", ";1.e4 e5 2.", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reader"] == "1/moe-x" and 0 <= found["distance"] <= 1 and 0 <= found["before"]["legal"] <= 1
    assert sum(found["after"]["moves"].values()) == pytest.approx(1) and found["shift"] > 0
    assert main(start.split()) == 0
    assert "of first moves legal" in capsys.readouterr().out


def test_mistakes_are_told(chess: str, gpt2: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(words: str) -> str:
        assert main(words.split()) == 2
        return capsys.readouterr().err

    assert "feature 999 is not in this layer: it has features 0 to 63" in said(
        f"steer {chess} --layer 1 --feature 999 --add 1"
    )
    assert "give features or experts" in said(f"steer {chess} --layer 1 --add 1")
    assert "give exactly one of add, set, scale and ablate; got none" in said(f"steer {chess} --feature 1")
    assert "choose one of 0/moe-x, 1/moe-x by layer and coder" in said(f"steer {chess} --feature 1 --add 1")
    assert "layer 7 is not in" in said(f"steer {chess} --layer 7 --feature 1 --add 1")
    assert "top_p is 0.0; expected a number above 0" in said(f"steer {gpt2} --layer 0 --feature 1 --add 1 --top-p 0")
    (tmp_path / "t.jsonl").write_text("")
    assert "needs two labels" in said(f"eval probe {gpt2} --task {tmp_path / 't.jsonl'}")
    assert "there is no file" in said(f"eval probe {gpt2} --task {tmp_path / 'none.jsonl'}")


def test_the_probe_verb(gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": t.upper() if i % 2 else t, "label": "AB"[i % 2]} for i, t in enumerate(made_up_texts(60))]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = f"eval probe {gpt2} --task {tmp_path / 't.jsonl'} --layers 1 --tokens 16 --splits 2"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert "1/neurons" in out and "60 texts of 2 classes, beginning, 16 tokens" in out
    assert main([*words.split(), "--json", "--last-token"]) == 0
    assert json.loads(capsys.readouterr().out)["read"] == "last token"
    assert main(f"eval probe {gpt2} --task surnames --layers 0 --samples 200 --splits 1 --json".split()) == 0
    assert set(json.loads(capsys.readouterr().out)["labels"]) == {"slavic", "nordic", "italian", "irish", "armenian"}
