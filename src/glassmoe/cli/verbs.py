"""The verbs of the command line: each is a public function, or a group of them. No heavy imports here, so that the list
of verbs is there at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from glassmoe.api.papers import TABLES


@dataclass(frozen=True)
class Verb:
    """A verb. `function`: module and name under `glassmoe.api`; `about`: its line in the list of verbs; `examples`:
    command lines without the program's name; `many`: the positional parameter that takes several values; `optional`:
    the positional parameter that may be left out; `fixed`: parameters that the verb's
    name decides; `after`: what to do next, with the result's `path` and the arguments in braces; `kinds`: of a group,
    its verbs."""

    name: str
    about: str
    function: str = ""
    examples: tuple[str, ...] = ()
    many: str | None = None
    optional: str | None = None
    fixed: dict[str, str] = field(default_factory=dict)
    after: str = ""
    kinds: dict[str, Verb] = field(default_factory=dict)


_DATA_OF_TABLES = {
    "table2": "--data data/text --on wikitext2",
    "upcycled": "--source smollm2/ --layers 12-19 --data data/text --on wikitext2",
}
"""Options in the examples of the tables that do not read games."""


def _group(name: str, about: str, *kinds: Verb) -> Verb:
    return Verb(name, about, kinds={kind.name.split()[1]: kind for kind in kinds})


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "quickstart",
            "train a small MoE-X on synthetic games and show what its features track",
            "runs:quickstart",
            ("quickstart", "quickstart --steps 200 --out runs/short"),
            after="the run: {out}\nits page, to open in a browser: {out}/report.html",
        ),
        Verb(
            "quickstart-llm",
            "open a layer of a real language model and write pages of its features",
            "quickstart:quickstart_llm",
            ("quickstart-llm", "quickstart-llm --steps 100 --features 50 --out runs/short"),
        ),
        _group(
            "data",
            "prepare games or text for training",
            Verb(
                "data chess",
                "PGN files or lines of games to tokens",
                "runs:prepare_chess",
                ("data chess games.pgn.zst --out data/games",),
                many="inputs",
            ),
            Verb(
                "data text",
                "documents to tokens",
                "runs:prepare_text",
                ("data text corpus.jsonl.zst --tokenizer train:8192 --out data/text",),
                many="inputs",
            ),
        ),
        Verb(
            "train",
            "train a model, or resume a run",
            "runs:train",
            (
                "train chess-small --data data/games --out runs/moex",
                "train chess-small --ffn gelu --steps 200",
                "train fineweb-s --dry-run --processes 8 --memory 80",
            ),
            optional="recipe",
        ),
        Verb(
            "upcycle",
            "turn a trained dense model, or some of its layers, into mixtures of experts",
            "runs:upcycle",
            (
                "upcycle smollm2/ --layers 12-19 --data data/web --out runs/smollm2-moex",
                "upcycle runs/dense chess-small --data data/games --out runs/moex",
            ),
            optional="recipe",
        ),
        Verb(
            "decompose",
            "open a pretrained model: fit sparse coders to its layers",
            "coders:decompose",
            ("decompose gpt2 --layers 8 --coders mxd,transcoder --data text/ --out runs/gpt2",),
            optional="model",
            after="next: glassmoe eval fidelity {path}",
        ),
        _group(
            "hub",
            "exchange models and coders with other tools",
            Verb(
                "hub export",
                "write a model for transformers, or coders for SAELens or sparsify",
                "coders:export",
                ("hub export runs/moex out/moex", "hub export runs/gpt2/8/sae-topk-k32 out/sae --format saelens"),
            ),
            Verb(
                "hub import",
                "read a coder of SAELens or sparsify",
                "coders:import_coder",
                ("hub import downloads/sae --model gpt2 --layer 8 --out runs/sae",),
                after="next: glassmoe eval fidelity {path}",
            ),
        ),
        _group(
            "eval",
            "measure a model or its coders",
            Verb(
                "eval ppl",
                "validation loss and perplexity, also on given texts",
                "measuring:evaluate_ppl",
                ("eval ppl runs/moex", "eval ppl gpt2 --on wikitext2,lambada"),
            ),
            Verb(
                "eval boards",
                "how well single features track the chess board",
                "measuring:evaluate_boards",
                ("eval boards runs/moex --layers 0,3",),
            ),
            Verb(
                "eval board-probes",
                "what linear probes read of the chess board",
                "measuring:evaluate_board_probes",
                ("eval board-probes runs/moex",),
            ),
            Verb(
                "eval legal-moves",
                "how often the likeliest move is legal",
                "measuring:evaluate_legal_moves",
                ("eval legal-moves runs/moex",),
            ),
            Verb(
                "eval fidelity",
                "what a model loses when coders replace parts of it",
                "measuring:evaluate_fidelity",
                ("eval fidelity runs/gpt2",),
            ),
            Verb(
                "eval probe",
                "how well one feature detects each class of a text",
                "measuring:probe",
                ("eval probe runs/gpt2 --task labelled.jsonl",),
            ),
        ),
        Verb(
            "steer",
            "change features while the model generates",
            "measuring:steer",
            (
                'steer runs/gpt2 --layer 8 --coder mxd-k32 --feature 123 --add 100 --prompt "Let\'s talk about "',
                'steer runs/moex --layer 0 --expert 2 --ablate --prompt ";1.e4 e5 2."',
            ),
        ),
        Verb(
            "trace",
            "say why the model predicts a token: a graph of features",
            "tracing:trace",
            (
                'trace runs/moex --prompt ";1.e4 e5 2.Nf3 " --target N --out trace',
                'trace runs/smollm2 --prompt "The capital of France is" --out trace',
            ),
        ),
        Verb(
            "explain",
            "say what features mean, and score every explanation",
            "features:explain",
            ("explain runs/moex --layer 0", "explain runs/gpt2 --layer 8 --coder mxd-k32 --judge rules"),
        ),
        Verb(
            "merge",
            "put together what the jobs of explain --shard made",
            "features:merge",
            ("merge runs/moex",),
        ),
        Verb(
            "explore",
            "write pages of every feature and expert",
            "features:explore",
            ("explore runs/moex --out site", "explore runs/moex --serve"),
            many="runs",
        ),
        Verb(
            "report",
            "write one page about a run, or about several side by side",
            "features:report",
            ("report runs/moex", "report runs/moex runs/gelu --out both.html"),
            many="runs",
        ),
        Verb(
            "generate",
            "continue a prompt",
            "runs:generate",
            ('generate runs/moex --prompt ";1.e4 e5 2."',),
        ),
        _group(
            "reproduce",
            "the tables and figures of the papers",
            *(
                Verb(
                    f"reproduce {name}",
                    about,
                    "papers:reproduce_table",
                    (f"reproduce {name} {_DATA_OF_TABLES.get(name, '--data data/games')}",),
                    fixed={"name": name},
                )
                for name, about in TABLES.items()
            ),
            Verb(
                "reproduce figure8",
                "how well explanations detect where features fire",
                "papers:figure8",
                ("reproduce figure8 runs/moex runs/gelu --layer 2",),
                many="runs",
            ),
            Verb(
                "reproduce chess-explained",
                "features that detect one board property",
                "papers:chess_explained",
                ("reproduce chess-explained runs/moex runs/gelu",),
                many="runs",
            ),
            Verb(
                "reproduce experts",
                "load and specialisation of the experts in existing runs",
                "papers:experts",
                ("reproduce experts runs/moex runs/switch",),
                many="runs",
            ),
            Verb(
                "reproduce trace",
                "how many features lead to a prediction",
                "papers:traces",
                ("reproduce trace runs/relu runs/switch runs/moex --prompts 100",),
                many="runs",
            ),
            Verb(
                "reproduce steering-games",
                "chess moves when single features are raised",
                "papers:steering_games",
                ("reproduce steering-games runs/moex --data data/games",),
                many="runs",
            ),
            Verb(
                "reproduce mxd-frontier",
                "accuracy against sparsity of coders",
                "papers_mxd:mxd_frontier",
                ("reproduce mxd-frontier --model gpt2 --layer 8 --data text/",),
            ),
            Verb(
                "reproduce mxd-probe",
                "sparse probing on several tasks",
                "papers_mxd:mxd_probe",
                ("reproduce mxd-probe runs/gpt2 --tasks surnames",),
            ),
            Verb(
                "reproduce mxd-steering",
                "texts when single features are raised",
                "papers_mxd:mxd_steering",
                ("reproduce mxd-steering runs/gpt2 --layers 8",),
            ),
        ),
    )
}
"""Verb -> what it is."""
