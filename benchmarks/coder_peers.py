"""The packages that fit coders are compared with: eai-sparsify and sae-lens. Every comparison takes their settings from
here: no loss for dead features, Adam at one learning rate, and the layer, rows and tokens of a step that are given.

Legend: B rows, N tokens of a row.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PEERS = {"sparsify": "eai-sparsify", "sae_lens": "sae-lens"}
"""Module -> name of its package. sae-lens trains no transcoders with a top-k."""
LR = 3e-4


@dataclass(frozen=True)
class PeerCoder:
    """A coder as both packages fit it."""

    width: int
    """Entries of what it reads."""
    features: int
    k: int
    """Features per token."""
    transcoder: bool = False
    """Whether it rebuilds an MLP's output from its input; else it rebuilds what it reads. sparsify alone has these."""

    def for_sparsify(self) -> Any:
        from sparsify.config import SparseCoderConfig

        settings: Any = {"num_latents": self.features, "k": self.k, "transcode": self.transcoder}
        return SparseCoderConfig(**settings)

    def for_sae_lens(self) -> Any:
        from sae_lens import TopKTrainingSAEConfig

        # Its sparse activations are off by default; on a CPU they raise an error in torch.
        settings: Any = {"d_in": self.width, "d_sae": self.features, "k": self.k}
        return TopKTrainingSAEConfig(**settings, aux_loss_coefficient=0.0)


def sparsify_fit(
    coder: PeerCoder, model: str, module: str, tokens_BN: npt.NDArray[np.int64], batch_tokens: int
) -> None:
    """A whole fit by its trainer, to the module at this path of the model in a folder."""
    from datasets import Dataset
    from sparsify import TrainConfig, Trainer
    from transformers import AutoModelForCausalLM

    # Its transcoders take float32 alone on a CPU; the model is otherwise read in the type of its files.
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32" if coder.transcoder else "auto")
    dataset = Dataset.from_dict({"input_ids": tokens_BN}).with_format("torch")
    # Its hook points are paths within the base model.
    points = [module.removeprefix(f"{loaded.base_model_prefix}.")]
    batch = batch_tokens // tokens_BN.shape[1]
    with tempfile.TemporaryDirectory() as out:
        settings: Any = {"batch_size": batch, "optimizer": "adam", "lr": LR, "save_dir": out}
        config = TrainConfig(coder.for_sparsify(), hookpoints=points, log_to_wandb=False, **settings)
        Trainer(config, dataset, loaded).fit()


def sae_lens_fit(
    coder: PeerCoder, model: str, module: str, tokens_BN: npt.NDArray[np.int64], batch_tokens: int
) -> None:
    """A whole fit by its runner, to the module at this path of the model in a folder."""
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
    from sae_lens.config import LoggingConfig

    row = tokens_BN.shape[1]
    source: Any = {"model_name": model, "model_class_name": "AutoModelForCausalLM", "dataset_path": "given"}
    config: Any = LanguageModelSAERunnerConfig(
        sae=coder.for_sae_lens(),
        **source,
        hook_name=module,
        context_size=row,
        prepend_bos=False,
        streaming=False,
        training_tokens=tokens_BN.size,
        train_batch_size_tokens=batch_tokens,
        store_batch_size_prompts=batch_tokens // row,
        n_batches_in_buffer=8 * batch_tokens // row,
        lr=LR,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        output_path=None,
    )
    LanguageModelSAETrainingRunner(config, override_dataset=Dataset.from_dict({"tokens": tokens_BN})).run()
