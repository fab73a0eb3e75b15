"""What a glassmoe decoder is made of, as a transformers configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from glassmoe.layers.dense import gated_hidden

from .rotary import rotary_size


class GlassConfig(PreTrainedConfig):
    """A decoder with one kind of feed-forward layer in every block: nanoGPT's by default (MoE-X Tables 6 and 7), or
    with the norms, positions, heads and biases of a GPT-2, GPT-NeoX or Llama.

    Field names are those of the run configuration (`glassmoe.config.ModelConfig`, which documents them), and `tokens`
    is what a token is (`DataConfig.tokens`). A model of text has the sha256 of its corpus' tokenizer file, and the
    token with which documents begin as both bos and eos. transformers' usual names (`hidden_size`,
    `num_hidden_layers`, ...) read and write the same values.
    """

    model_type = "glassmoe"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
        "num_experts_per_tok": "experts_per_token",
        "initializer_range": "init_std",
    }
    # Queries, keys and values are one matrix, so that its outputs are gathered before they are divided into heads.
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.attention.qkv": "colwise_gather_output",
        "layers.*.attention.out": "rowwise_split_input",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "tokens": (["input_ids"], ["inputs_embeds"]),
        "positions": (["position_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "losses"]

    tokens: str = "characters"
    tokenizer_sha256: str | None = None
    vocab_size: int = 32
    context: int = 1023
    layers: int = 8
    heads: int = 8
    width: int = 512
    ffn: str = "moe-x"
    active_width: int = 4096
    num_experts: int = 8
    experts_per_token: int = 2
    activation: str | None = None
    router: str | None = None
    balance: float = 0.01
    router_gradient: bool = True
    gated: bool = False
    bias: bool = False
    attention_bias: bool | None = None
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    positions: str = "learned"
    rotary_theta: float = 10000.0
    rotary_share: float = 1.0
    rotary_scaling: dict[str, float] | None = None
    kv_heads: int | None = None
    parallel_residual: bool = False
    unused_ids: int = 0
    init_std: float = 0.02
    options: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", "glassmoe")
        super().__post_init__(**kwargs)

    @property
    def num_key_value_heads(self) -> int:
        """Number of key/value heads, under transformers' name."""
        return self.kv_heads or self.heads

    @property
    def expert_hidden(self) -> int:
        """Hidden units of one expert: the active width is shared out among a token's experts."""
        share = self.active_width // self.experts_per_token
        return gated_hidden(share) if self.gated else share

    @property
    def rotary_size(self) -> int:
        """Entries of a head that turn with the position; ValueError as `rotary.rotary_size`."""
        return rotary_size(self.width // self.heads, self.rotary_share, self.rotary_scaling)
