"""The one decoder: nanoGPT's block with a slot for the feed-forward layer, as a native transformers model.

x + attention(LN(x)), then x + ffn(LN(x)); learned positions; embedding and head tied; no dropout (MoE-X Table 6 sets it
to 0). The configuration makes of it the decoders of GPT-NeoX (x + attention(LN1(x)) + ffn(LN2(x)), rotary positions)
and Llama (RMSNorm, rotary positions, key/value heads shared by groups of heads). Initialisation: N(0, 0.02),
projections into the residual stream N(0, 0.02 / sqrt(2 * layers)), biases 0.

Legend: B rows, S positions, T = B * S tokens, D model width (of a head where heads are named), H heads, G key/value
heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from glassmoe.layers.features import FeedForward
from glassmoe.layers.one_token import Linear

from .attention import causal_attention
from .chunked_loss import summed_loss
from .configuration import GlassConfig
from .feed_forwards import build_feed_forward
from .rotary import Turns, rotary_turns, turn

SERVED = "attention_instances"
"""Argument by which vLLM hands its own attention to a model: a call then has tokens of several texts in one row."""


def attention(
    module: nn.Module, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention under the name "glassmoe" of transformers' attention interface; returns (B, S, H, D).

    SDPA, but for bf16 on a CPU without a cache or padding, where batched products of our own are more than twice as
    fast at these sizes (in float32 SDPA is level with them or ahead).
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if q_BHSD.device.type != "cpu" or q_BHSD.dtype != torch.bfloat16 or mask is not None or q_BHSD.shape[2] == 1:
        out, _ = sdpa_attention_forward(module, q_BHSD, k_BHSD, v_BHSD, mask, **kwargs)
        return out, None
    if groups > 1:
        k_BHSD, v_BHSD = (x.repeat_interleave(groups, dim=1) for x in (k_BHSD, v_BHSD))
    return causal_attention(q_BHSD, k_BHSD, v_BHSD).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("glassmoe", attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("glassmoe", sdpa_mask)


def make_norm(config: GlassConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


class Attention(nn.Module):
    is_causal = True

    def __init__(self, config: GlassConfig, layer: int):
        super().__init__()
        self.config, self.layer_idx = config, layer  # serving software looks for these names
        head, kv_heads = config.width // config.heads, config.kv_heads or config.heads
        # Which of the heads that `qkv` makes are queries, keys and values.
        self.parts = [config.heads, kv_heads, kv_heads]
        if kv_heads < config.heads:  # transformers' attention functions look for this name
            self.num_key_value_groups = config.heads // kv_heads
        bias = config.bias if config.attention_bias is None else config.attention_bias
        self.qkv = Linear(config.width, sum(self.parts) * head, bias=bias)
        self.out = Linear(config.width, config.width, bias=bias)
        self.out.into_stream = True  # type: ignore[assignment]

    def forward(
        self, x_BSD: Tensor, mask: Tensor | None, cache: Cache | None, turns: Turns | None = None, **kwargs: Any
    ) -> Tensor:
        batch, length, width = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, length, sum(self.parts), -1).transpose(1, 2)
        q_BHSD, k_BGSD, v_BGSD = qkv.split(self.parts, dim=1)
        if turns is not None:
            q_BHSD, k_BGSD = turn(q_BHSD, turns), turn(k_BGSD, turns)
        if cache is not None:
            k_BGSD, v_BGSD = cache.update(k_BGSD, v_BGSD, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention)
        out_BSHD, _ = attend(self, q_BHSD, k_BGSD, v_BGSD, mask, **kwargs)
        return self.out(out_BSHD.reshape(batch, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: GlassConfig, layer: int):
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.ffn_norm = make_norm(config)
        self.ffn = build_feed_forward(config)
        self.recompute = False
        """Whether the backward pass computes the activations again, instead of keeping them."""

    def forward(
        self, x_BSD: Tensor, mask: Tensor | None, cache: Cache | None, turns: Turns | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        arguments = (x_BSD, mask, cache, turns)
        if not (self.recompute and torch.is_grad_enabled()):
            return self._forward(*arguments, **kwargs)
        # The second forward pass must not move running statistics again.
        result: tuple[Tensor, dict[str, Tensor]] = checkpoint(
            self._forward,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _buffers_kept(self)),
            **kwargs,
        )
        return result

    def _forward(
        self, x_BSD: Tensor, mask: Tensor | None, cache: Cache | None, turns: Turns | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        attended_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), mask, cache, turns, **kwargs)
        y_TD, losses = self.ffn(self.ffn_norm(x_BSD if self.parallel else attended_BSD).flatten(0, 1))
        return attended_BSD + y_TD.view_as(x_BSD), losses


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@dataclass
class GlassOutput(ModelOutput):
    """Logits (B, S, V) and what came with them. `losses`: the layers' training losses by name, averaged over layers."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    losses: dict[str, Tensor] | None = None


class GlassPreTrainedModel(PreTrainedModel):
    config_class = GlassConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.layers)
        if isinstance(module, FeedForward):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1 or name.startswith("b_"):
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, 0.0, residual_std if name in module.output_weights else std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        else:
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 1:
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, 0.0, residual_std if hasattr(module, "into_stream") else std)


class GlassModel(GlassPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: GlassConfig):
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)
        self.turning = config.rotary_size if config.positions == "rotary" else 0
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Cache | None, dict[str, Tensor]]:
        """The last hidden state (B, S, D), the cache, and the layers' named losses, averaged over layers.

        `kwargs` go to the attention function. Software that serves models gives rows of several texts with their
        positions, and may leave out modules that run on another device (`base_model_pp_plan`).
        """
        x_BSD = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = x_BSD.shape[1]
        if seen + length > self.config.context and SERVED not in kwargs:
            raise ValueError(
                f"{seen + length} tokens are more than this model's context of {self.config.context}; "
                f"give it at most {self.config.context - seen} here"
            )
        # transformers looks for several documents in positions that it gets, and the host would wait for the answer.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BSD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = torch.arange(seen, seen + length, device=x_BSD.device).unsqueeze(0)
        turns = None
        if isinstance(self.positions, nn.Embedding):
            x_BSD = x_BSD + self.positions(position_ids)
        elif self.turning:
            turns = rotary_turns(position_ids, self.turning, self.config.rotary_theta, self.config.rotary_scaling)
        losses: dict[str, list[Tensor]] = {}
        for block in self.layers:
            result = block(x_BSD, mask, past_key_values, turns, **kwargs)
            x_BSD, named = result if isinstance(result, tuple) else (result, {})
            for name, loss in named.items():
                losses.setdefault(name, []).append(loss)
        mean_losses = {name: torch.stack(per_layer).mean() for name, per_layer in losses.items()}
        return self.norm(x_BSD), past_key_values, mean_losses


class GlassForCausalLM(GlassPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head, tied to the embedding unless the configuration says otherwise."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.tokens.weight"}

    def __init__(self, config: GlassConfig):
        super().__init__(config)
        self.model = GlassModel(config)
        self.lm_head: nn.Linear = Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> GlassOutput:
        """Logits (B, S, V). With `labels` (B, S; -100 is left out) also the mean next-token loss in nats, to which the
        layers' training losses are added while training. With `targets` (B, S; the label of each position) instead the
        summed loss, without logits, which take much memory where the vocabulary is large. `kwargs` go to the attention
        function."""
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        hidden_BSD, cache, losses = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        if targets is not None:
            return GlassOutput(
                loss=summed_loss(hidden_BSD.flatten(0, 1), targets.flatten(), self.lm_head), losses=losses
            )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BSV = self.lm_head(hidden_BSD[:, keep])
        loss = None
        if labels is not None:
            # Labels are moved, not logits, which are larger by the vocabulary.
            following_BS = F.pad(labels[:, 1:], (0, 1), value=-100)
            loss = F.cross_entropy(logits_BSV.flatten(0, 1).float(), following_BS.flatten())
            loss = loss + sum(losses.values(), torch.zeros_like(loss))
        return GlassOutput(loss=loss, logits=logits_BSV, past_key_values=cache, losses=losses)

    def feed_forwards(self) -> list[FeedForward]:
        """The feed-forward layer of every block, first to last."""
        return [module.ffn for module in self.modules() if isinstance(module, Block)]

    def active_parameters(self) -> int:
        """Weights multiplied for one token: all but the embedding look-ups and the experts that are not chosen."""
        ffn = sum(layer.active_parameters() for layer in self.feed_forwards())
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        return ffn + sum(p.numel() for a in attentions for p in a.parameters()) + self.lm_head.weight.numel()

    def flops_per_token(self, length: int) -> int:
        """Training FLOPs of one token in rows of `length`: 6 for each active weight (forward 2, backward 4), and
        12 * layers * width * length for attention, in full, not halved for causality (as Chowdhery et al. 2022)."""
        attention_flops: int = 12 * self.config.layers * self.config.width * length
        return 6 * self.active_parameters() + attention_flops


AutoConfig.register("glassmoe", GlassConfig)
AutoModel.register(GlassConfig, GlassModel)
AutoModelForCausalLM.register(GlassConfig, GlassForCausalLM)
