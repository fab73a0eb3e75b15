"""A sparse autoencoder whose features fire above one fixed threshold. T tokens, D width, F features."""

from torch import Tensor

from glassmoe.coders.base import Coder, CodingPass
from glassmoe.layers.features import Features


class FixedThreshold(Coder):
    """f = z where z = W_enc (x - b_dec) + b_enc is above `options.threshold` (default 0.1), else 0; an L1 penalty."""

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        z_TF = self.scores(x_TD)
        values_TF = z_TF * (z_TF > (self.config.options or {}).get("threshold", 0.1))
        return Features(values_TF, self.num_features), values_TF

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        return {"sparsity": self.config.l1 * self.scale * coded.features.values.sum(1).mean()}
