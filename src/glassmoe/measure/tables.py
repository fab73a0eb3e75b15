"""Short tables for people, as Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns; numbers of type float get three decimals, None a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def boards_table(measured: dict[str, Any]) -> str:
    """Coverage and reconstruction, layer by layer, with the controls that were measured."""
    layers = measured["layers"]
    header = ["layer", "coverage", "held-out", "reconstruction", "strategy cov.", "L0", "alive", "of"]
    keys = [
        "layer",
        "coverage",
        "held_out_coverage",
        "reconstruction",
        "strategy_coverage",
        "l0",
        "alive",
        "width",
    ]
    controls = [
        (name, key, label)
        for name, label in (("subsample", "subsample"), ("random", "random weights"))
        for key, what in (("held_out_coverage", "held-out"), ("reconstruction", "rec."))
        if any(name in layer for layer in layers)
        for label in [f"{label} {what}"]
    ]
    rows = [
        [f"{layer['l0']:.0f}" if key == "l0" else layer[key] for key in keys]
        + [layer.get(name, {}).get(key) for name, key, _ in controls]
        for layer in layers
    ]
    return (
        table(header + [label for *_, label in controls], rows)
        + f"\n\n{measured['games']:,} games to choose features on, {measured['games']:,} others to test them; "
        f"best layer by reconstruction: {measured['best_layer']}"
    )


def tracked_table(measured: dict[str, Any]) -> str:
    """What single features of the best layer say about the board, in words."""
    rows = [
        [
            each["slot"],
            each["feature"],
            each["f1"],
            each["f1_always_on"],
            each["f1_random"],
            f"{each['true_share']:.1%}",
        ]
        for each in measured["tracked"]
    ]
    found = measured["detected"]
    return (
        f"What single features of layer {measured['best_layer']} track (chosen on other games):\n\n"
        + table(["on the board", "feature", "F1", "always-on F1", "random-weight F1", "true on"], rows)
        + f"\n\n{found['f1_0.9']} of {found['slots']} facts of the board are told with F1 of at least 0.9, "
        f"{found['f1_0.75']} with 0.75, {found['f1_0.5']} with 0.5"
    )


def fidelity_table(found: dict[str, dict[str, Any]]) -> str:
    """One line a coder: how well it rebuilds, and what the model loses by it."""
    header = ["coder", "features", "parameters", "L0", "dead", "normalised MSE", "loss", "spliced", "increase"]
    header += ["recovered"]
    rows = []
    for name, each in found.items():
        facts = [f"{each['features']:,}", f"{each['parameters']:,}", f"{each['l0']:.1f}", each["dead"]]
        losses = [f"{each[key]:.4f}" for key in ("normalised_mse", "loss", "loss_spliced", "loss_increase")]
        rows.append([name, *facts, *losses, each["loss_recovered"]])
    return table(header, rows)


def probe_table(found: dict[str, Any]) -> str:
    """One line a reader: F1 of the best feature of each class, chosen without the test texts."""
    labels = list(found["labels"])[:6]
    header = ["features", "mean F1", "+-", "random feature", "chosen by test", *(f"{label}" for label in labels)]
    rows = []
    for name, each in found["readers"].items():
        by_label = {entry["label"]: f"{entry['f1']:.3f} ({entry['feature']})" for entry in each["classes"]}
        half = None if each["half"] is None else f"{each['half']:.3f}"
        figures = [f"{each['f1']:.3f}", half, f"{each['f1_random']:.3f}", f"{each['f1_chosen_by_test']:.3f}"]
        rows.append([name, *figures, *(by_label[label] for label in labels)])
    more = f"; {len(found['labels']) - 6} more classes are in --json" if len(found["labels"]) > 6 else ""
    words = (
        f"{found['task']}: {found['texts']:,} texts of {len(found['labels'])} classes, {found['read']}, "
        f"{found['tokens']} tokens; in brackets the feature{more}"
    )
    skipped = f"; {found['unreadable']} texts could not be read" if found["unreadable"] else ""
    return f"{table(header, rows)}\n\n{words}{skipped}"


def steering_text(name: str, found: dict[str, Any]) -> str:
    """What was written before and after, and the figures of the change."""
    lines = [f"{name}: {found['edit']}", f"shift {found['shift']:.4f} nats a token"]
    for when in ("before", "after"):
        each = found[when]
        facts = [f"perplexity {each['perplexity']:.1f}"] if each.get("perplexity") is not None else []
        if "legal" in each:
            moves = ", ".join(f"{move or '(none)'} {share:.0%}" for move, share in list(each["moves"].items())[:5])
            facts = [f"{each['legal']:.0%} of first moves legal: {moves}"]
        lines += ["", f"{when} " + " ".join(f"({fact})" for fact in facts), *(f"  {text!r}" for text in each["texts"])]
    for word in ("raised", "lowered"):
        lines += ["", f"{word}: " + ", ".join(f"{token!r} {change:+.3f}" for token, change in found[word])]
    return "\n".join(lines)


def perplexity_table(measured: dict[str, Any]) -> str:
    """One line; bits per character only where a token is one, bits per byte only of text."""
    per_byte = "bits per byte" + (" (bytes estimated)" if measured.get("bytes_are") == "estimated" else "")
    error, bits = measured["loss_standard_error"], measured["bits_per_character"]
    line = {
        "loss (nats)": f"{measured['loss']:.4f}",
        "+-": None if error is None else f"{error:.4f}",
        "perplexity": measured["perplexity"],
        **({} if bits is None else {"bits per character": bits}),
        **({} if measured.get("bits_per_byte") is None else {per_byte: measured["bits_per_byte"]}),
        "rows": f"{measured['rows']:,}",
        "tokens": f"{measured['tokens']:,}",
        "cut": measured["cut"],
    }
    return table(list(line), [list(line.values())])


def corpora_table(found: Sequence[dict[str, Any]]) -> str:
    """One line for each text, the last words of passages in one of their own; under it what was read."""
    several = len({one["what"] for one in found}) > 1
    lines, read = [], {}
    for one in found:
        name, last = one["on"], one.get("last_word")
        head = [one["what"]] if several else []
        error = one["loss_standard_error"]
        numbers = [f"{one['loss']:.4f}", None if error is None else f"{error:.4f}", f"{one['perplexity']:.2f}"]
        word = None if one["word_perplexity"] is None else f"{one['word_perplexity']:.2f}"
        label = f"{name}, whole passage" if last else name
        lines.append([*head, label, *numbers, word, one["bits_per_byte"], f"{one['tokens']:,}", None])
        if last:
            per_word = None if last["perplexity"] is None else f"{last['perplexity']:.2f}"
            accuracy = None if last["accuracy"] is None else f"{last['accuracy']:.1%}"
            lines.append([*head, f"{name}, last word", None, None, None, per_word, None, None, accuracy])
        read[name] = _read_line(one)
    header = ["on", "loss (nats)", "+-", "perplexity", "per word", "bits per byte", "tokens", "accuracy"]
    if not any(one.get("last_word") for one in found):
        header, lines = header[:-1], [line[:-1] for line in lines]
    return "\n".join([table([*(["what"] if several else []), *header], lines), "", *read.values()])


def _read_line(one: dict[str, Any]) -> str:
    skipped = "".join(f"; {count:,} left out ({reason})" for reason, count in one["skipped"].items())
    mended = f"; {one['not_utf8']:,} were not all UTF-8" if one["not_utf8"] else ""
    stride = "non-overlapping" if one["stride"] == one["window"] else f"stride {one['stride']:,}"
    return (
        f"{one['on']}: {one['source']}, sha256 {one['sha256'][:16]}, {one['about']}; {one['documents']:,} documents, "
        f"{one['words']:,} words, {one['bytes']:,} bytes, {one['windows']:,} windows of {one['window']:,} tokens, "
        f"{stride}{skipped}{mended}"
    )


def bench_table(figures: dict[str, Any]) -> str:
    """Figures beside their targets; under the table what was compared exactly, and what was left out."""
    lines = [line for line in figures["rows"] if "skipped" not in line]
    rows = [
        [
            line["name"],
            *(_measured(line[key], line["unit"]) for key in ("value", "low", "high")),
            line["of"],
            _target(line),
            {True: "yes", False: "no", None: None}[line["met"]],
            line.get("tokens_per_second"),
        ]
        for line in lines
    ]
    notes: dict[str, dict[str, None]] = {}  # each note once, with the names of its lines in order
    for line in lines:
        if line["note"]:
            notes.setdefault(line["note"], {})[line["name"]] = None
    left_out = [f"not measured: {line['name']}: {line['skipped']}" for line in figures["rows"] if "skipped" in line]
    return "\n".join(
        [
            table(["what", "value", "low", "high", "of what", "target", "met", "tokens/s"], rows),
            "",
            *(f"- {'; '.join(names)}: {note}" for note, names in notes.items()),
            *(f"- {line}" for line in left_out),
            "",
            f"Medians of {figures['repeats']} repeats, with the lowest and the highest; {figures['hardware']}, "
            f"{figures['dtype']}",
        ]
    )


def _target(line: dict[str, Any]) -> str | None:
    signs = {"at_least": ">=", "at_most": "<="}
    bounds = (line["target"] or {}).items()
    return ", ".join(f"{signs[kind]} {_measured(bound, line['unit'])}" for kind, bound in bounds) or None


def _measured(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    if unit == "difference":
        return f"{value:.1g}"
    if unit == "count":
        return f"{value:.0f}"
    return f"{value:.2f}" + {"ratio": "", "seconds": " s", "GiB": " GiB"}[unit]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
