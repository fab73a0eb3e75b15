"""How much memory a process of a training needs, computed before anything is trained or written.

The memory of a process at its peak, in bytes, is

    weights + gradients + states + gathered + layers * (stream + block) + max(backward, stream + loss)

or, if that is more, weights + gradients + states + update. The parts, for P parameters of which a process holds the
share P_s (all of them alone; FSDP2's largest part, about P / S, where S processes share one copy of the model), T
tokens of a forward pass (rows times their length less one) and model width D:

- weights: 4 P_s, in float32. gradients: 4 P_s. states: 8 P_s where AdamW updates, 4 P_s where Muon does.
- gathered: 0 alone. Where weights are shared, 4 bytes a parameter of the outermost module, of two blocks (one computes,
  the next is gathered) and of the gradients of one block before they are divided.
- stream: 4 T D, the input of a block. With `data.document_mask` all blocks share a mask of one byte for each query and
  key, rows * length^2. block: what else a block keeps for its backward pass, in bf16 also a copy of its
  weights. With `train.recompute` a block keeps its input only, and `backward` holds the rest once.
- backward: the largest number of bytes that the backward pass of one block adds to these.
- loss: the same of the final norm, the logits and the cross-entropy, forward and backward. Above
  `chunked_loss.MOST_LOGITS` logits this is the memory of a chunk.
- update: temporary values of an optimizer step.

`block`, `backward` and `loss` are counted by running one block and the loss, forward and backward, on tensors without
data (`live_bytes.py`). The gradients exist from the second pass on; a step of one pass may need less. Not counted: what
the process holds without a model (a CUDA context is about half a GiB), memory that the allocator cannot reuse, what
torch.compile changes, and the source of an upcycled model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.config import RunConfig
from glassmoe.data.corpus import Corpus
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.device import autocast, compute_dtype, pick_device
from glassmoe.model import GlassConfig, GlassForCausalLM, chunked_loss
from glassmoe.model.attention import within_documents
from glassmoe.model.loading import foreign_settings
from glassmoe.model.rotary import rotary_turns
from glassmoe.model.transformer import Block, make_norm
from glassmoe.results import Result

from .distributed import Processes, replica_groups, split_dimension, split_part
from .language import step_passes
from .live_bytes import LiveBytes, fake_mode
from .optimizer import build_optimizers
from .resolve import model_settings
from .source import source_settings
from .start import complete

GPT2_IDS = 50257
"""Size of the vocabulary of text without prepared data or a source: that of GPT-2's tokenizer, as in the paper."""
GIB = 1 << 30


@dataclass(frozen=True)
class PassMemory(Result):
    """What the passes of a step need beyond weights, gradients and states, in bytes."""

    activations: int
    """Kept by all blocks for the backward pass."""
    backward: int
    """Temporary values of the backward pass of one block."""
    logits: int
    """The final norm, logits and cross-entropy, with their backward pass."""

    @property
    def peak(self) -> int:
        """The most that exists at once."""
        return self.activations + max(self.backward, self.logits)


@dataclass(frozen=True)
class MemoryPlan(Result):
    """The memory of one process of a training, the one that needs most. Sizes are in bytes."""

    parameters: int
    """Number of weights of the model."""
    active_parameters: int
    """Number of weights that are multiplied for one token."""
    vocabulary: int
    """Number of token ids."""
    processes: int
    """Number of processes."""
    replicas: int
    """Number of copies of the model (`train.replicas`)."""
    pass_tokens: int
    """Number of tokens in one forward pass of a process."""
    device: str
    """`cpu` or `cuda`."""
    precision: str
    """Type of products, bf16 or fp32."""
    weights: int
    """Weights that the process holds."""
    gradients: int
    """Their gradients."""
    states: int
    """Their optimizer states."""
    gathered: int
    """Weights and gradients of other processes that exist here for a while."""
    update: int
    """Temporary values of the optimizer step."""
    chunked_loss: bool
    """Whether logits are computed in chunks."""
    recompute: bool
    """Whether the run recomputes activations (`train.recompute`), which decides `total` and `fits`."""
    kept: PassMemory
    """Passes without recomputation."""
    recomputed: PassMemory
    """Passes with recomputation."""
    memory: int
    """Memory for one process."""

    def total_of(self, passes: PassMemory) -> int:
        """Peak memory of the process."""
        held = self.weights + self.gradients + self.states
        return held + max(self.gathered + passes.peak, self.update)

    @property
    def total(self) -> int:
        """Peak memory of the run as it is configured."""
        return self.total_of(self.recomputed if self.recompute else self.kept)

    @property
    def fits(self) -> bool:
        """Whether the run as it is configured fits into `memory`."""
        return self.total <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """The fields, `total` and `fits`."""
        return {**super().to_dict(), "total": self.total, "fits": self.fits}

    def rows(self) -> list[dict[str, Any]]:
        lines = [
            *(("weights", self.weights, self.weights), ("gradients", self.gradients, self.gradients)),
            *(("optimizer states", self.states, self.states), ("gathered weights", self.gathered, self.gathered)),
            ("activations", self.kept.activations, self.recomputed.activations),
            ("backward pass of a block", self.kept.backward, self.recomputed.backward),
            (f"logits{' in chunks' if self.chunked_loss else ''}", self.kept.logits, self.recomputed.logits),
            ("optimizer step", self.update, self.update),
            ("peak", self.total_of(self.kept), self.total_of(self.recomputed)),
        ]
        return [{"part": name, "kept, GiB": kept / GIB, "recomputed, GiB": again / GIB} for name, kept, again in lines]

    def notes(self) -> list[str]:
        several = f"each of {self.processes} processes" if self.processes > 1 else "one process"
        copies = f", {self.replicas} copies of the model" if self.replicas > 1 else ""
        other = self.total_of(self.kept if self.recompute else self.recomputed) <= self.memory
        turned = f"train.recompute {str(not self.recompute).lower()}"
        advice = f"; with {turned} it {'would' if other else 'would not either'}" if not self.fits else ""
        return [
            f"{self.parameters / 1e6:,.2f}M parameters, {self.active_parameters / 1e6:,.2f}M active; vocabulary "
            f"{self.vocabulary:,}; {self.pass_tokens:,} tokens a pass; {several}{copies}; {self.device}, "
            f"{self.precision}.",
            "The peak has the larger one of backward pass and logits, and the optimizer step only where that needs "
            "more. Columns: activations are kept, or recomputed (train.recompute).",
            f"As configured (train.recompute {str(self.recompute).lower()}) it "
            f"{'fits' if self.fits else 'does not fit'} into {self.memory / GIB:.1f} GiB a process{advice}.",
        ]


@dataclass(frozen=True)
class _ForwardPass:
    """A forward pass: settings of the model, its rows and their length, and how it computes."""

    model: GlassConfig
    rows: int
    length: int
    dtype: torch.dtype
    document_mask: bool = False

    @property
    def stream(self) -> int:
        """Bytes of the residual stream."""
        return 4 * self.rows * self.length * self.model.width


def plan_memory(config: RunConfig, processes: int = 1, memory: float | None = None) -> MemoryPlan:
    """The memory of a process that trains `config`. Reads the data or the source if the configuration names them, and
    no run directory; writes nothing.

    `memory`: GiB of one process (default: the device's; the processes of a CPU share its memory). ValueError for a
    configuration that cannot be trained, a device without known memory, and a layer that cannot run without data.
    """
    group = Processes(0, processes, replica_groups(processes, config.train.replicas))
    step_passes(config.train, group)
    device, dtype = _device(config)
    if memory is None and device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device is cuda, but torch sees no GPU; say how much memory it has, such as --memory 80")
    config, kind = _resolved(config)
    length = _row_length(config.data.rows)
    settings = model_settings(config, length, kind)
    with torch.device("meta"):
        model = GlassForCausalLM(settings)
    parts = {id(p): _held(p, group) for p in model.parameters()}
    states = update = 0
    for optimizer in build_optimizers(model, config.optimizer):
        sizes = [4 * parts[id(p)] for group_ in optimizer.param_groups for p in group_["params"]]
        adamw = isinstance(optimizer, torch.optim.AdamW)
        states += sum(sizes) * (2 if adamw else 1)
        # AdamW updates all weights together on a GPU, and one after the other on a CPU.
        update = max(update, sum(sizes) if adamw and device == "cuda" else max(sizes) * (2 if adamw else 4))
    rows = min(config.train.micro_rows, -(-config.train.batch_rows // processes))
    # SDPA on a GPU keeps no attention weights; on a CPU the model chooses.
    attention = "sdpa" if device == "cuda" else "glassmoe"
    masked = config.data.document_mask and config.data.rows.startswith("packed")
    step = _ForwardPass(_one_layer(settings, attention), rows, length - 1, dtype, masked)
    logits = _loss_bytes(step)
    weights = 4 * sum(parts.values())
    return MemoryPlan(
        parameters=model.num_parameters(),
        active_parameters=model.active_parameters(),
        vocabulary=settings.vocab_size,
        processes=processes,
        replicas=group.replicas,
        pass_tokens=rows * (length - 1),
        device=device,
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        weights=weights,
        gradients=weights,
        states=states,
        gathered=_gathered(model) if group.shards > 1 else 0,
        update=update,
        chunked_loss=_is_chunked(step),
        recompute=config.train.recompute,
        kept=_block_bytes(step, settings.layers, logits, recompute=False),
        recomputed=_block_bytes(step, settings.layers, logits, recompute=True),
        memory=_memory(device, processes) if memory is None else round(memory * GIB),
    )


def _device(config: RunConfig) -> tuple[str, torch.dtype]:
    """Name of the device and type of products. A GPU need not be there; one that is not multiplies bf16."""
    name = config.train.device
    if name == "cuda" and not torch.cuda.is_available():
        return name, torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    device = pick_device(name)
    return device.type, compute_dtype(config.train.precision, device)


def _memory(device: str, processes: int) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def _resolved(config: RunConfig) -> tuple[RunConfig, TokenKind]:
    """The configuration with the shape of its source, and its kind of tokens: that of the data, or as many ids as the
    source has, or those of the domain."""
    name = config.start.source
    if name is None and config.start.shape == "source":
        raise ValueError("start.shape is source and start.source is missing; name one: --start.source FOLDER")
    if name is not None and foreign_settings(name) is not None:
        raise ValueError(
            f"a dry run knows the memory of decoders of glassmoe only, but start.source {name} is a model whose layers "
            f"are replaced in place; train it for a few steps and measure"
        )
    source = None if name is None else source_settings(name)
    if source is not None and config.start.shape == "source":
        config = complete(config, source)
    if config.data.path is not None:
        return config, Corpus.open(config.data.path, config.data.tokens).require(config.data.tokens).kind
    if config.data.tokens != TEXT:
        return config, token_kind(config.data.tokens)
    ids = GPT2_IDS if source is None else source.vocab_size - source.unused_ids
    # Only the number of ids matters here.
    return config, token_kind("characters")._replace(name=TEXT, vocabulary=[""] * ids, start_token="")


def _row_length(cut: str) -> int:
    found = re.fullmatch(r"\w+:(\d{1,9})", cut)
    if not found or int(found[1]) < 2:
        raise ValueError(f"data.rows is {cut!r}; expected rows of at least 2 tokens, for instance packed:1024")
    return int(found[1])


def _one_layer(settings: GlassConfig, attention: str) -> GlassConfig:
    return GlassConfig(**{**settings.to_dict(), "layers": 1, "attn_implementation": attention})


def _held(p: Tensor, group: Processes) -> int:
    """Entries of a weight that the first process holds; no process holds more."""
    if group.shards == 1:
        return p.numel()
    dim = split_dimension(p.shape, group.shards)
    size = p.shape[dim] if p.ndim else 1
    part = split_part(size, group)
    entries: int = p.numel() // size * (part.stop - part.start)
    return entries


def _gathered(model: GlassForCausalLM) -> int:
    """Bytes of what FSDP2 gathers at once; see the formula of this module."""
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    outermost: int = model.num_parameters() - block * len(model.model.layers)
    return 4 * (outermost + 3 * block)


def _is_chunked(step: _ForwardPass) -> bool:
    return step.rows * step.length * step.model.vocab_size > chunked_loss.MOST_LOGITS


def _block_bytes(step: _ForwardPass, layers: int, logits: int, *, recompute: bool) -> PassMemory:
    """Memory of the passes of `layers` equal blocks."""

    mask: Tensor | None = None

    def forward(block: nn.Module, x_BSD: Tensor) -> list[Tensor]:
        turns = None
        if step.model.positions == "rotary":
            positions = torch.arange(step.length).unsqueeze(0)
            turns = rotary_turns(positions, step.model.rotary_size, step.model.rotary_theta, step.model.rotary_scaling)
        y_BSD, losses = block(x_BSD, mask, None, turns)
        return [y_BSD, *losses.values()]

    def build() -> nn.Module:
        nonlocal mask
        if step.document_mask:
            mask = within_documents(torch.zeros(step.rows, step.length, dtype=torch.long))["attention_mask"]
        block = Block(step.model, 0).train()
        block.recompute = recompute
        return block

    kept, backward = _measure(step, build, forward)
    mask_bytes = step.rows * step.length**2 if step.document_mask else 0  # all blocks share it
    return PassMemory(activations=layers * kept + mask_bytes, backward=backward - kept, logits=step.stream + logits)


def _loss_bytes(step: _ForwardPass) -> int:
    """Peak memory of the final norm and the loss, forward and backward, beyond the input of the norm."""

    def build() -> nn.Module:
        norm, head = make_norm(step.model), nn.Linear(step.model.width, step.model.vocab_size, bias=False)
        return nn.ModuleDict({"norm": norm, "head": head})

    def forward(parts: Any, x_BSD: Tensor) -> list[Tensor]:
        hidden_TD = parts["norm"](x_BSD).flatten(0, 1)
        labels_T = torch.zeros(len(hidden_TD), dtype=torch.long)
        if _is_chunked(step):
            return [chunked_loss.summed_loss(hidden_TD, labels_T, parts["head"])]
        logits_TV = parts["head"](hidden_TD).float()
        return [nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")]

    return _measure(step, build, forward)[1] - step.stream


def _measure(
    step: _ForwardPass, build: Callable[[], nn.Module], forward: Callable[[Any, Tensor], list[Tensor]]
) -> tuple[int, int]:
    """Bytes that a module keeps for its backward pass, and its peak in forward and backward passes; both with its input
    and without its weights and their gradients, which exist before. Its output counts as long as the module keeps it.
    """
    device = torch.device("cpu")
    try:
        with fake_mode(), LiveBytes() as live:
            module = build()
            for p in module.parameters():
                p.grad = torch.zeros_like(p)
            before = live.now
            x_BSD = torch.empty(step.rows, step.length, step.model.width, requires_grad=True)
            live.from_here()
            with autocast(device, step.dtype):
                outputs = forward(module, x_BSD)
            output = outputs[0].untyped_storage().nbytes()
            kept = live.now - before - output
            torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])
            return kept, live.peak - before - output
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the memory of model.ffn {step.model.ffn} cannot be computed, because the layer does not run on tensors "
            f"without data ({error}); train a few steps and measure it"
        ) from error
