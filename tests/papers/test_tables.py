"""Results files of suites: rows are merged, refused and kept in order; the page says what the numbers say."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glassmoe.measure.results_file import dumps
from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.tables import TableResults
from result_rows import cells, coder, results, row


def test_headline_by_hand() -> None:
    page = results("table1", [row("gelu"), row("moe-x", coverage=0.3), coder()]).page("t")
    gelu = cells(page, "gelu", "seeds")
    assert gelu["loss"] == "0.6000" and gelu["paper"] == "0.213"
    assert gelu["coverage"] == "0.200" and gelu["paper2"] == "0.356" and gelu["held-out"] == "0.100"
    assert gelu["reconstruction"] == "0.400" and gelu["paper3"] == "0.608"
    # No wider than the dense layer: it is its own equal width.
    assert (gelu["equal-width held-out"], gelu["equal-width rec."]) == ("0.100", "0.400")
    assert (gelu["random held-out"], gelu["random rec."], gelu["layer"]) == ("0.020", "0.010", "1")
    assert (gelu["L0"], gelu["alive"], gelu["tokens"], gelu["FLOPs"]) == ("12", "64 of 64", "8.00M", "4.00e+13")
    assert (gelu["active"], gelu["ratio"], gelu["parameters"]) == ("1.300M", "1.00", "2.500M")
    wide = cells(page, "moe-x", "seeds")
    assert (wide["equal-width held-out"], wide["equal-width rec."]) == ("0.060", "0.070")
    assert wide["paper"] == "-" and wide["paper2"] == "0.398"
    spliced = cells(page, "sae-topk", "seeds")
    assert spliced["loss"] == "0.6500" and spliced["tokens"] == "12.00M" and spliced["paper2"] == "-"
    assert "unequal tokens" not in page  # an autoencoder's fit comes after
    fidelity = cells(page, "sae-topk", "spliced")
    assert [fidelity[key] for key in ("loss", "spliced", "zeroed", "increase")] == [
        "0.6000",
        "0.6500",
        "2.6000",
        "0.0500",
    ]
    assert fidelity["loss recovered"] == "0.975" and fidelity["alive"] == "93.0%"
    assert "17.5" not in page
    assert "## Over seeds" not in page and "## Failed" not in page and "## Shown apart" not in page
    for name in ("gelu, seed 0", "moe-x, seed 0", "sae-topk, seed 0"):
        assert f"## {name}, layer by layer" in page


def test_seeds_are_averaged_and_paired() -> None:
    rows = [row("gelu", seed, coverage=c) for seed, c in enumerate((0.1, 0.2, 0.3))]
    rows += [row("moe-x", seed, coverage=c) for seed, c in enumerate((0.2, 0.3, 0.4))]
    page = results("table1", [*rows, row("relu")]).page("t")
    assert cells(page, "gelu", "seeds")["coverage"] == "0.200" and cells(page, "gelu", "seeds")["seeds"] == "3"
    over = page[page.index("## Over seeds") :]
    # 0.1, 0.2, 0.3: deviation 0.1, half 4.302653 * 0.1 / sqrt(3).
    assert cells(over, "gelu", "seeds")["coverage"] == "0.200 +- 0.248"
    less = cells(over, "moe-x", "minus")
    assert less["minus"] == "gelu" and less["n"] == "3" and less["coverage"] == "+0.100 +- 0.000"
    assert less["loss"] == "+0.0000 +- 0.0000" and less["reconstruction"] == "+0.200 +- 0.000"
    claim = cells(over, "moe-x is ahead of gelu in coverage", "claim")
    assert claim["here"] == "yes" and claim["n"] == "3" and claim["paper"] == "yes"


def test_rows_apart_failed_rows_starts_and_notes() -> None:
    start = {"valid_loss": {"source": 0.7, "copied": 0.7, "start": 0.71}, "noise": 0.1, "redraw": 0.25}
    rows = [
        row("gelu"),
        row("moe-x-upcycled", own_tokens=4_000_000, start=start, curve=[[4_000_000, 0.6]], board_curve=[]),
    ]
    rows.append(row("moe-x-upcycled-full", tokens=16_000_000, start=start, apart=True))
    failed = [{"name": "peer", "seed": 1, "reason": "the loss is not finite"}]
    page = results("table4", rows, failed=failed, notes=["A remark."]).page("t")
    above, below = page.split("## Shown apart")
    assert "| moe-x-upcycled-full " not in above and cells(below, "moe-x-upcycled-full", "seeds")["tokens"] == "16.00M"
    assert "\n\nA remark.\n\n" in above and "unequal tokens" not in above
    assert cells(page, "peer", "reason")["reason"] == "the loss is not finite"
    began = cells(page, "moe-x-upcycled", "redraw")
    assert began["source's tokens"] == "4.00M" and began["start"] == "0.7100" and began["redraw"] == "0.25"
    assert cells(page, "moe-x-upcycled", "held-out") and "| moe-x-upcycled      | 0    | 8.00M  | 0.6000 |" in page
    unequal = results("table1", [row("gelu"), row("relu", tokens=9_000_000)]).page("t")
    assert "unequal tokens**, from 8.00M (gelu) to 9.00M (relu)" in unequal


def test_routers_and_maps_have_their_tables() -> None:
    numbers = {"pearson": -0.9, "rank_agreement": 0.8, "chosen_sparsest": 0.7, "chosen_exactly": 0.6, "hidden": 32}
    learned = {
        "layer": 0,
        "router": "learned",
        **numbers,
        "predicted_l0_error": None,
        "mean_l0": 15.6,
        "load": [0.2, 0.8],
    }
    sparsity = {**learned, "layer": 1, "router": "sparsity", "predicted_l0_error": 3.14}
    drawn = {"layer": 1, "experts": 8, "neighbours": 10, "neighbour_share": 0.25, "chance": 0.12, "points": []}
    rows = [row("switch", routing={"layers": [learned, sparsity], "points": []}, encoder_map=drawn)]
    page = results("figure9", rows).page("t")
    assert "| switch | 0    | 0     | learned  | -0.900 | 0.800          | 0.700          | 0.600         |" in page
    assert "16 of 32" in page and "| 3.1 " in page and "0.200 to 0.800" in page
    assert cells(page, "switch", "by chance")["in the same expert"] == "0.250"
    assert "| paper " not in page  # this suite has none of the paper's numbers


def probed(reconstruction: float, legal: float) -> dict[str, Any]:
    """Probes of two layers and legal moves; the second layer's probes are by 0.1 better than the first's."""
    layers = [
        {
            "layer": at,
            "accuracy": 0.9,
            "piece_f1": 0.8,
            "reconstruction": reconstruction - 0.1 * (1 - at),
            "accuracy_half": 0.01,
            "penalty": 0.1,
            "random": {"accuracy": 0.7, "piece_f1": 0.6, "reconstruction": 0.5},
        }
        for at in (0, 1)
    ]
    majority = {"accuracy": 0.689, "piece_f1": 0.583, "reconstruction": 0.124}
    probes = {"games": 10, "boards": 200, "best_layer": 1, "majority": majority, "layers": layers}
    moves = {"tokens": "moves", "games": 10, "positions": 3900, "legal": legal, "half": 0.002, "played": 0.4}
    return {"board_probes": probes, "legal_moves": {**moves, "mass": 0.95, "mass_half": 0.001}}


def test_probes_and_legal_moves_have_columns_once_a_row_has_them() -> None:
    rows = [row("gelu", 0, **probed(0.7, 0.97)), row("gelu", 1, **probed(0.8, 0.99)), row("relu"), coder()]
    page = results("table1", rows).page("t")
    gelu, relu = cells(page, "gelu", "seeds"), cells(page, "relu", "seeds")
    assert [gelu[key] for key in ("probe acc.", "probe rec.", "random probe rec.", "legal")] == [
        "0.900", "0.750", "0.500", "0.980",
    ]  # fmt: skip
    assert {relu[key] for key in ("probe acc.", "probe rec.", "random probe rec.", "legal")} == {"-"}
    assert "a linear probe of what the same layer reads" in page
    over = page[page.index("## Over seeds") :]
    assert cells(over, "gelu", "seeds")["probe rec."].startswith("0.750 +- ")
    probes = page[page.index("## What linear probes read of the board") :]
    first = cells(probes, "gelu", "layer")
    assert (first["layer"], first["accuracy"], first["+-"], first["piece F1"]) == ("0", "0.900", "0.010", "0.800")
    assert (first["reconstruction"], first["random rec."], first["features' rec."]) == ("0.600", "0.500", "0.100")
    assert "accuracy 0.689, piece F1 0.583, reconstruction 0.124" in probes
    legal = cells(page[page.index("## Legal moves") :], "gelu", "positions")
    assert (legal["positions"], legal["legal"], legal["+-"]) == ("3,900", "0.9700", "0.0020")
    assert (legal["legal mass"], legal["mass +-"], legal["move of the game"]) == ("0.9500", "0.0010", "0.400")
    # Files of earlier versions have neither columns nor sections.
    page = results("table1", [row("gelu")]).page("t")
    assert "probe" not in page and "Legal" not in page
    characters = probed(0.7, 0.97)
    del characters["legal_moves"]["mass"], characters["legal_moves"]["mass_half"]
    page = results("table1", [row("gelu", **characters)]).page("t")
    assert cells(page[page.index("## Legal moves") :], "gelu", "positions")["legal mass"] == "-"


def test_moves_and_calibration_say_what_they_are() -> None:
    page = results("table1", [row("gelu")], token="move").page("t")
    assert "nats per move" in page and "not comparable with a loss per move" in page
    page = results("calibration", [row("gelu")]).page("t")
    assert "| MLP neurons  | coverage       | 0.062 |" in page and "nats per character" in page


def test_a_curve_counts_the_sources_tokens_in() -> None:
    upcycled = row("moe-x", own_tokens=4_000_000, curve=[[1_000_000, 0.9], [4_000_000, 0.7]])
    assert upcycled.curve_from_source("curve") == [[5_000_000, 0.9], [8_000_000, 0.7]]
    with pytest.raises(
        ValueError, match="board_curve of row moe-x ends at 8000000 tokens, beyond the 4000000 of its run"
    ):
        upcycled.curve_from_source("board_curve")
    assert row("x", curve=[]).curve_from_source("curve") == []


def save(path: Path, table: TableResults) -> TableResults:
    return table.save(path.parent, path.name, draw=False)


def saved(path: Path, *rows: MeasuredRow, **more: Any) -> dict[str, Any]:
    save(path, results("table1", list(rows), **more))
    found: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return found


def test_rows_are_merged_in_declared_order_with_their_notes(tmp_path: Path) -> None:
    path, names = tmp_path / "results" / "table1", ["gelu", "moe-x"]
    saved(path, row("moe-x"), names=names, failed=[{"name": "gelu", "seed": 1, "reason": "out of memory"}])
    found = saved(path, row("gelu", 1), row("gelu", 0), names=names)
    assert [(each["name"], each["seed"]) for each in found["rows"]] == [("gelu", 0), ("gelu", 1), ("moe-x", 0)]
    assert found["failed"] == []  # its row came

    found["notes"] = ["Somebody's remark."]
    path.with_name("table1.json").write_text(json.dumps(found))
    found = saved(path, row("gelu", 0, loss=0.5), names=names, notes=["Another."])
    assert found["notes"] == ["Somebody's remark.", "Another."]
    assert [each["ppl"]["loss"] for each in found["rows"]] == [0.5, 0.6, 0.6]
    assert len(found["order"]) == 4 and found["order"][0]["answer"] == "undecided"
    text = path.with_name("table1.json").read_text()
    saved(path, names=names)
    assert path.with_name("table1.json").read_text() == text  # nothing new, the same bytes
    assert "Somebody's remark." in path.with_name("table1.md").read_text()
    read = TableResults.read(path.with_name("table1.json"))
    assert read.to_dict() == found


def test_a_row_keeps_measures_only_while_it_is_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "t"
    saved(path, row("moe-x", routing={"layers": [], "points": []}))
    again = row("moe-x", loss=0.5)
    assert "routing" in saved(path, again)["rows"][0]
    longer = row("moe-x", tokens=9_000_000, own_tokens=9_000_000)
    assert "routing" not in saved(path, longer)["rows"][0]


def _save_seeds(path: Path, name: str) -> None:
    for seed in range(12):
        save(path, results("table1", [row(name, seed)], names=["gelu", "moe-x"]))


def test_two_commands_at_once_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "results" / "t"
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(_save_seeds, path, name) for name in ("gelu", "moe-x")]:
            each.result()
    found = TableResults.read(path.with_name("t.json")).entries
    assert [each.key for each in found] == [(n, s) for n in ("gelu", "moe-x") for s in range(12)]
    assert {file.name for file in path.parent.iterdir()} == {"t.json", "t.md"}


def test_rows_of_another_learning_rate_are_named_and_lose_the_old_measures(tmp_path: Path) -> None:
    path = tmp_path / "t"
    rows = [row("gelu", learning_rate=0.01), row("relu", learning_rate=0.01), row("solu", routing={}, points=[])]
    saved(path, *rows)
    assert "learning rate is" not in path.with_name("t.md").read_text()
    kept = saved(path, row("solu", learning_rate=0.01, loss=0.5))["rows"][-1]
    assert "routing" in kept  # the first row's rate was not kept, and is taken for the same
    slower = saved(path, row("solu", learning_rate=0.005))["rows"][-1]
    assert "routing" not in slower
    assert "The learning rate is 0.01, but for solu (0.005)." in path.with_name("t.md").read_text()


def test_failures_of_mere_sources_do_not_stay(tmp_path: Path) -> None:
    path, names = tmp_path / "t", ["gelu", "peer"]
    lost = [{"name": name, "seed": 0, "reason": "no"} for name in ("relu-source", "peer")]
    assert len(saved(path, row("gelu"), names=names, failed=lost)["failed"]) == 2
    assert [each["name"] for each in saved(path, names=names)["failed"]] == ["peer"]


def test_other_games_or_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    saved(path, row("gelu"))
    for fact in ("suite", "scale", "recipe", "data_sha256"):
        with pytest.raises(ValueError, match=f"holds results with {fact} .*, these have other. .*give another name"):
            save(path, replace(results("table1", []), **{fact: "other"}))
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a file that glassmoe wrote: expected JSON with suite"):
        save(path, results("table1", []))


def test_every_row_has_its_line() -> None:
    values = {"a": "x", "rows": [{"b": [1, 2.5]}, {"b": [None, True]}], "c": [], "d": {"e": "[1,\n 2]"}}
    text = dumps(values)
    assert json.loads(text) == values and list(json.loads(text)) == list(values)
    assert text.splitlines() == [
        "{", '"a": "x",', '"rows": [', '{"b":[1,2.5]},', '{"b":[null,true]}', "],", '"c": [],',
        '"d": {"e":"[1,\\n 2]"}', "}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Out of range float"):
        dumps({"a": float("nan")})
