"""A sparse coder of your own, fitted and measured like the ones that glassmoe brings.

    python examples/new_coder.py runs/quickstart --layer 1 --out runs/fixed-threshold

The coder is an autoencoder whose features fire above one fixed threshold. It says how features are computed (`_encode`)
and what is minimised besides the error (`_losses`). Options after the file's name are those of `glassmoe decompose`.
"""

import sys

from torch import Tensor

from glassmoe.cli import main as cli
from glassmoe.coders.base import Coder, CodingPass
from glassmoe.coders.kinds import CODERS
from glassmoe.layers.features import Features


class FixedThreshold(Coder):
    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        z_TF = self.scores(x_TD)
        return Features(z_TF * (z_TF > 0.1), self.num_features), z_TF

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        return {"sparsity": self.config.l1 * self.scale * coded.features.values.sum(1).mean()}


CODERS["sae-fixed-threshold"] = FixedThreshold

if __name__ == "__main__":
    options = sys.argv[1:]
    out = options[options.index("--out") + 1] if "--out" in options else "runs/fixed-threshold"
    options = options if "--out" in options else [*options, "--out", out]
    fitted = cli.main(["decompose", *options, "--coders", "sae-fixed-threshold"])
    raise SystemExit(fitted or cli.main(["eval", "fidelity", out]))
