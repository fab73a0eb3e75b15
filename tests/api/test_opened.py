"""Models that are opened already, given to public functions: the same answers and mistakes as for their paths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import glassmoe as gm
from glassmoe.checksums import read_json
from glassmoe.measure.saved import read_measure
from glassmoe.pages.run_record import read_run
from glassmoe.training.language import train
from glassmoe.training.tracking import read_metrics
from tiny_runs import tiny

IDS = [1, 5, 9, 2, 7]


@pytest.fixture(scope="module")
def run(noise_games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(noise_games, "relu"), tmp_path_factory.mktemp("opened") / "run")


@pytest.fixture
def model(run: Path) -> gm.Model:
    return gm.load(run, device="cpu")


def logits(model: gm.Model) -> torch.Tensor:
    with torch.no_grad():
        return model.torch_model(input_ids=torch.tensor([IDS])).logits


def test_edits_of_one_layer_add_up(model: gm.Model) -> None:
    plain = logits(model)
    with model.edit(layer=1, features=[3, 20], add=5.0):
        together = logits(model)
    for first, second in ((3, 20), (20, 3)):
        with model.edit(layer=1, features=[first], add=5.0):
            alone = logits(model)
            with model.edit(layer=1, features=[second], add=5.0):
                torch.testing.assert_close(logits(model), together)
            torch.testing.assert_close(logits(model), alone)
        assert not torch.allclose(alone, together)
    # The inner edit sees what the outer one left.
    with model.edit(layer=1, features=[3], set=2.0), model.edit(layer=1, features=[3], scale=3.0):
        scaled = logits(model)
    with model.edit(layer=1, features=[3], set=6.0):
        torch.testing.assert_close(logits(model), scaled)
    with model.edit(layer=0, features=[3], add=5.0), model.edit(layer=1, features=[3], add=5.0):
        assert not torch.allclose(logits(model), plain)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)


def test_an_edit_that_fails_leaves_no_trace(model: gm.Model) -> None:
    plain = logits(model)
    with (
        pytest.raises(KeyError),
        model.edit(layer=1, features=[3], add=5.0),
        model.edit(layer=1, features=[4], add=5.0),
    ):
        raise KeyError
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.trace(IDS)


def test_another_layer_at_an_edited_place_is_refused(model: gm.Model, run: Path) -> None:
    again = gm.Model(model.subject, gm.load(run, device="cpu").layers, None)
    with (
        model.edit(layer=1, features=[3], add=5.0),
        pytest.raises(ValueError, match="is edited by another layer or coder; leave that edit first"),
        again.edit(layer=1, features=[3], add=5.0),
    ):
        pass


def test_what_cannot_see_an_edit_says_so(model: gm.Model) -> None:
    with model.edit(layer=1, features=[3], add=50.0):
        with pytest.raises(ValueError, match="the model is edited, and this measure, which reads the run's files"):
            gm.evaluate(model, "ppl", rows=4)
        with pytest.raises(ValueError, match="the model is edited, and an attribution graph"):
            model.trace(IDS)
        changed = gm.evaluate(model, "fidelity", rows=4)
    assert changed.to_dict() != gm.evaluate(model, "fidelity", rows=4).to_dict()
    assert model.trace(IDS).targets


def test_layers_of_an_opened_model(model: gm.Model) -> None:
    assert list(model) == ["0/relu", "1/relu"]
    assert list(gm.load(model, layers=1)) == ["1/relu"] and gm.load(model, layers=[0])["0/relu"] is model["0/relu"]
    assert gm.load(model) is model
    with pytest.raises(ValueError, match=r"layer 7 is not in .*: it has layers 0, 1"):
        gm.load(model, layers=7)
    steered = gm.steer(model, layer=1, feature=3, add=1.0, tokens=2, samples=1)
    assert steered.reader == "1/relu"


@pytest.mark.parametrize("ids", [np.array(IDS), torch.tensor(IDS), tuple(IDS), np.array(IDS, dtype=np.uint8)])
def test_token_ids_of_any_kind(model: gm.Model, ids: object) -> None:
    assert torch.equal(model.features(ids, layer=1).values, model.features(IDS, layer=1).values)
    assert model.trace(ids).token_ids == IDS


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 99999], "token id 99999; expected ids from 0 to"),
        ([1, -2], "token id -2; expected ids from 0 to"),
        ([[1, 2], [3, 4]], r"several rows; expected one row of token ids, such as ids\[0\]"),
        ([[1, 2], [3]], "several rows"),
        (torch.tensor([IDS]), "several rows"),
        ([1.5, 2.7], "of type float64; expected token ids, which are whole numbers"),
        ([], "the (text has 0 tokens|prompt is empty)"),
    ],
)
def test_token_ids_that_are_none(model: gm.Model, ids: object, message: str) -> None:
    for read in (lambda ids: model.features(ids, layer=1), model.trace):
        with pytest.raises(ValueError, match=message):
            read(ids)


def test_whole_numbers_of_numpy(run: Path, model: gm.Model) -> None:
    assert list(gm.load(run, layers=np.int64(1), device="cpu")) == ["1/relu"]
    assert list(gm.load(run, layers=np.array([0, 1]), device="cpu")) == ["0/relu", "1/relu"]
    for features in (np.int64(3), np.array([3]), 3):
        with model.edit(layer=1, features=features, add=5.0):
            edited = logits(model)
    with model.edit(layer=1, features=[3], add=5.0):
        torch.testing.assert_close(logits(model), edited)


def test_what_is_no_model_or_path(model: gm.Model, tmp_path: Path) -> None:
    for wrong in (model.torch_model, [model.torch_model, None]):
        with pytest.raises(
            ValueError, match=r"is no model to open; give a path, a hub id, or a pair \(model, tokenizer\)"
        ):
            gm.load(wrong)
    assert Path(gm.report(model, out=tmp_path).page) == tmp_path / "report.html"
    assert Path(gm.report([model], out=tmp_path / "page.html").page).is_file()
    assert gm.trace(model, prompt=IDS, device="cpu").token_ids == IDS
    objects = gm.Model(model.subject, model.layers, None)
    for call in (lambda: gm.report(objects), lambda: gm.explain(objects), lambda: gm.trace(objects, prompt=IDS)):
        with pytest.raises(ValueError, match="a model that was made from objects has none; give the path"):
            call()
    with pytest.raises(ValueError, match="a float has none"):
        gm.explore([1.5])


def test_options_that_would_be_ignored_are_refused(run: Path, model: gm.Model) -> None:
    with pytest.raises(ValueError, match=r"coder is 'mxd', and .* was opened without coders; leave coder out"):
        model.trace(IDS, coder="mxd")
    with pytest.raises(ValueError, match="row names the row of a results file; give results too"):
        gm.evaluate_ppl(run, row="mine")
    for name in ("tokens", "samples"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected a whole number above 0"):
            model.generate(**{name: 0})


def test_only_the_whole_validation_split_is_the_loss_of_a_run(run: Path, noise_games: Path) -> None:
    gm.evaluate_ppl(run, rows=4, device="cpu")
    gm.evaluate_ppl(run, cut="games:32", device="cpu")
    assert read_measure(run, "ppl") is None
    whole = gm.evaluate_ppl(run, device="cpu")
    gm.evaluate_ppl(run, rows=4, device="cpu")
    assert read_measure(run, "ppl").values["loss"] == whole.loss
    assert gm.evaluate_ppl(run, data=noise_games, device="cpu").loss == whole.loss == read_run(run, "run").valid_loss
    # A measure of an earlier step, or of other data, is not the loss of the run.
    path, in_training = run / "measures/ppl.json", read_metrics(run / "metrics.jsonl")[-1].valid_loss
    for change in ({"step": 2}, {"data_sha256": "0" * 64}):
        kept = path.read_text()
        path.write_text(json.dumps({**read_json(path), **change}))
        assert read_run(run, "run").ppl is None and read_run(run, "run").valid_loss == in_training != whole.loss
        path.write_text(kept)
