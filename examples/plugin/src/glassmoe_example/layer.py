"""A feed-forward layer: ReLU units that fire above a fixed threshold. T tokens, D model width, F hidden units."""

import torch

from glassmoe.model import Features, FeedForward, GlassConfig, empty_parameters, linear_write


class ShiftedReLU(FeedForward):
    """y = W_dec^T f with f = z where z = W_enc x is above `options.threshold` (default 0.1), else 0."""

    def __init__(self, config: GlassConfig):
        super().__init__()
        self.num_features = config.active_width
        self.threshold = (config.options or {}).get("threshold", 0.1)
        shape = (config.active_width, config.width)
        self.w_enc, self.w_dec = empty_parameters(shape, shape)

    def features(self, x_TD: torch.Tensor) -> Features:
        z_TF = x_TD @ self.w_enc.T
        return Features(z_TF * (z_TF > self.threshold), self.num_features)

    def write(self, features: Features) -> torch.Tensor:
        return linear_write(features, self.w_dec, None)
