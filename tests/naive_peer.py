"""PEER straight from its formulas: loops over tokens, heads and all n * n experts, no product-key shortcut."""

import math

import torch

from glassmoe.layers.peer import EPSILON, Peer


def naive_queries(layer: Peer, x: torch.Tensor) -> torch.Tensor:
    """(T, 2, H, C): queries, normalised by the batch while training, by the running statistics otherwise."""
    q = x @ layer.router.query.T
    mean, var = layer.router.query_mean, layer.router.query_var
    if layer.training and len(x) > 1:
        mean = sum(q) / len(q)
        var = sum((row - mean) ** 2 for row in q) / len(q)
    return ((q - mean) / (var + EPSILON).sqrt()).view(len(x), 2, layer.router.heads, -1)


def naive_experts(layer: Peer, x: torch.Tensor) -> list[list[tuple[torch.Tensor, list[int]]]]:
    """For each token and head: gates (K) and the numbers of the K best of all n * n experts."""
    q = naive_queries(layer, x)
    n = math.isqrt(layer.num_features)
    found = []
    for t in range(len(x)):
        heads = []
        for h in range(layer.router.heads):
            scores = []
            for e in range(n * n):
                k1, k2 = layer.router.keys[0, h, e // n], layer.router.keys[1, h, e % n]
                scores.append((q[t, 0, h] * k1).sum() + (q[t, 1, h] * k2).sum())
            best = sorted(range(n * n), key=lambda e, s=scores: -s[e].item())[: layer.router.k]
            weights = torch.stack([scores[e] for e in best]).exp()
            heads.append((weights / weights.sum(), best))
        found.append(heads)
    return found


def naive_peer_features(layer: Peer, x: torch.Tensor) -> torch.Tensor:
    """(T, N): each expert's gate times activation, summed over heads."""
    rows = []
    for token, heads in zip(x, naive_experts(layer, x), strict=True):
        row = [x.new_zeros(())] * layer.num_features
        for gates, best in heads:
            for gate, e in zip(gates, best, strict=True):
                z = (layer.w_enc[e] * token).sum()
                s = z.clamp_min(0) if layer.activation == "relu" else z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
                row[e] = row[e] + gate * s
        rows.append(torch.stack(row))
    return torch.stack(rows)


def naive_peer_output(layer: Peer, x: torch.Tensor) -> torch.Tensor:
    """(T, D)"""
    features = naive_peer_features(layer, x)
    y = sum(features[:, e : e + 1] * layer.w_dec[e] for e in range(layer.num_features))
    return y if layer.b_dec is None else y + layer.b_dec
