"""A feed-forward layer of your own, trained and measured like the ones that glassmoe brings.

    python examples/new_layer.py --data data/games --out runs/top-k

The layer keeps the k strongest ReLU units of each token. It implements the two steps, `features` and `write`;
everything that trains, reads or measures a model works on it. Options after the file's name are those of `glassmoe
train`.
"""

import sys

import torch
import torch.nn.functional as F

from glassmoe.cli import main as cli
from glassmoe.model import FEED_FORWARD, Features, FeedForward, GlassConfig, empty_parameters, linear_write


class TopK(FeedForward):
    def __init__(self, config: GlassConfig):
        super().__init__()
        self.num_features = config.active_width
        self.k = (config.options or {}).get("k", 32)
        shape = (config.active_width, config.width)
        self.w_enc, self.w_dec = empty_parameters(shape, shape)

    def features(self, x_TD: torch.Tensor) -> Features:
        strongest = F.relu(x_TD @ self.w_enc.T).topk(self.k, dim=-1)
        return Features(strongest.values, self.num_features, strongest.indices)

    def write(self, features: Features) -> torch.Tensor:
        return linear_write(features, self.w_dec, None)


FEED_FORWARD["top-k"] = TopK

if __name__ == "__main__":
    options = sys.argv[1:]
    out = options[options.index("--out") + 1] if "--out" in options else "runs/top-k"
    options = options if "--out" in options else [*options, "--out", out]
    trained = cli.main(
        ["train", "--config", "quickstart", "--model.ffn", "top-k", "--model.options", "{k: 32}", *options]
    )
    raise SystemExit(trained or cli.main(["eval", "boards", out, "--games", "100"]))
