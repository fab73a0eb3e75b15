"""Training a transformers model in which layers were replaced: what it takes over, what it learns, and what learns.

In distillation a second copy of the source, the teacher, reads the same rows. The model learns its next-token
probabilities (KL) and the outputs of the MLPs that were replaced (MSE).

Legend: B rows, N tokens of a row, T positions with a label, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.device import moved
from glassmoe.layers.moe import MoE
from glassmoe.model.families import family_of
from glassmoe.model.loss import mask_inputs, next_token_loss
from glassmoe.model.replacing import take_over
from glassmoe.model.subject import Place, Subject, hook_at, load_subject, place_in, weights_digest
from glassmoe.model.swapping import own_layers, path_of, take_losses
from glassmoe.model.upcycle import break_symmetry
from glassmoe.model.upcycled import active_parameters, greatest_difference, upcycled_classes

from .batches import PassRows, labelled_positions
from .building import opened, put
from .distributed import Processes
from .language import STATISTICS_ROWS, LanguageTask
from .records import read_start
from .resolve import ResolvedRun
from .source import save_settings


class InPlaceTask(LanguageTask):
    """Next-token prediction by a model with replaced layers, or distillation from its source."""

    def __init__(self, resolved: ResolvedRun, group: Processes, source: Subject | None = None):
        self.teacher: Any = None
        if resolved.config.start.objective == "distill":
            self.teacher = (_teacher(resolved) if source is None else source).model
        super().__init__(resolved, group, source)
        if self.document_mask:
            _require_document_masks(self.module)
        self.places = [place_in(self.module, number, "mlp-out") for number in own_layers(self.module)]

    def build(self) -> Any:
        settings = self.resolved.model
        module = upcycled_classes(family_of(settings))[1](settings)
        if self.config.start.learn == "layers":
            module.requires_grad_(False)
            for layer in own_layers(module).values():
                layer.requires_grad_(True)
        return module

    def blocks(self, model: Any) -> Any:
        # Layers lie in one list, and the path of an MLP begins with it.
        return model.get_submodule(str(model.config.glassmoe["module"]).partition(".{}")[0])

    def recompute(self) -> None:
        self.module.activation_checkpointing_enable()

    def flops(self, model: Any, length: int) -> float:
        """2 for each active weight and pass: forward, backward to the inputs, backward to the weights; where only the
        new layers learn, backward reaches from the head to the first of them. Attention counts as in our decoder. The
        teacher adds a forward pass."""
        sizes = model.config.get_text_config()
        layers, active = sizes.num_hidden_layers, active_parameters(model)
        attention: float = 4 * layers * sizes.hidden_size * length
        backward, learning = 1.0, float(active)
        if self.config.start.learn == "layers":
            own = own_layers(model)
            backward = 1 - min(own) / layers
            learning = float(sum(layer.active_parameters() for layer in own.values()))
        total: float = (2 * active + attention) + backward * (2 * active + 2 * attention) + 2 * learning
        return total + (0 if self.teacher is None else 2 * active_parameters(self.teacher) + attention)

    def losses(self, rows: PassRows) -> tuple[Tensor, dict[str, Tensor]]:
        if self.teacher is None:
            loss, _ = next_token_loss(self.compute, rows.tokens_BN, rows.lengths_B, rows.documents_BN)
            return loss, take_losses(self.module)
        kl, mse = (1.0 if each is None else each for each in (self.config.start.kl, self.config.start.mse))
        divergence, error = distillation(self.compute, self.teacher, self.module, self.places, rows)
        return kl * divergence, {"mse": mse * error, **take_losses(self.module)}

    def statistics(self, step: int) -> dict[str, Any]:
        layers = super().statistics(step)["layers"]
        return {"layers": [{"layer": n, **entry} for n, entry in zip(own_layers(self.module), layers, strict=True)]}

    def start(self, source: Subject) -> None:
        if self.group.first:
            save_settings(self.resolved.model, self.out)
        start, settings = self.config.start, self.module.config.glassmoe
        loss = {"source": self.valid_loss(source.model)}
        replaced = take_over(source.model, self.module, put, opened)
        loss["copied"] = self.valid_loss(self.module)
        difference = self._difference(source.model)
        generator = torch.Generator().manual_seed(self.config.seed)
        layers, new_weights = [], 0
        for number, kind, exact in replaced:
            layer = own_layers(self.module)[number]
            redrawn = 0
            if kind == "experts":
                with opened(layer) as whole:
                    redrawn = break_symmetry(whole, start.noise, start.redraw, generator)
                assert isinstance(layer, MoE)
                new_weights += 0 if layer.router is None else sum(p.numel() for p in layer.router.parameters())
            elif kind == "new":
                new_weights += sum(p.numel() for p in layer.parameters())
            layers.append({"layer": number, "module": path_of(settings, number), "kind": kind, "exact": exact})
            layers[-1]["redrawn"] = redrawn
        loss["start"] = self.valid_loss(self.module)
        inside = sum(p.numel() for layer in own_layers(self.module).values() for p in layer.parameters())
        self.write_receipt(
            source,
            loss,
            layers=layers,
            noise=start.noise,
            redraw=start.redraw,
            copied_weights=self.module.num_parameters() - inside,
            source_parameters=source.model.num_parameters(),
            parameters=self.module.num_parameters(),
            new_weights=new_weights,
            active_parameters=self.active_parameters,
            difference=difference,
            source_sha256=weights_digest(source.model),
        )

    def _difference(self, source: Any) -> float:
        rows = self.rows["valid"]
        tokens, _ = rows.batch(range(min(STATISTICS_ROWS, len(rows))))
        self.module.eval()
        difference = greatest_difference(source, self.module, moved(tokens[:, :-1], self.device).long())
        self.module.train()
        return difference


@torch.no_grad()
def _require_document_masks(model: Any) -> None:
    """ValueError when a model does not keep documents apart by their positions. It is asked: what it says of the second
    of two documents must not depend on the first."""
    device = next(model.parameters()).device
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2, device=device)
    tokens_BS = torch.tensor([[1, 2, 3, 1, 2, 3], [3, 2, 1, 1, 2, 3]], device=device)
    training = model.training
    try:
        logits = model.eval()(input_ids=tokens_BS, use_cache=False, **mask_inputs(model, documents_BS)).logits
        apart = torch.allclose(logits[0, 3:], logits[1, 3:], rtol=1e-4, atol=1e-5)
        apart = apart and not torch.allclose(logits[0, :3], logits[1, :3], rtol=1e-4, atol=1e-5)
    except (TypeError, ValueError):  # it takes no positions
        apart = False
    model.train(training)
    if not apart:
        raise ValueError(
            f"data.document_mask is true, but a {family_of(model.config)} model reads all documents of a row together; "
            f"leave it out, or give rows of one document each: --data.rows documents:N"
        )


def _teacher(resolved: ResolvedRun) -> Subject:
    """The source of a run that is resumed. ValueError when it has other weights than at the start."""
    name = str(resolved.config.start.source)
    source, receipt = load_subject(name, resolved.device.type), read_start(resolved.out)
    if receipt is not None and receipt.source_sha256 not in (None, weights_digest(source.model)):
        raise ValueError(
            f"cannot resume {resolved.out}: {name} has other weights than when the run began, and the run learns to "
            f"compute what these computed; put them back"
        )
    return source


def distillation(
    compute: Any, teacher: Any, student: Any, places: Sequence[Place], rows: PassRows
) -> tuple[Tensor, Tensor]:
    """How far a student is from its teacher on rows of tokens: the divergence KL(teacher || student) of the next-token
    probabilities in nats, summed over labels, and the squared error of the outputs at `places` over the variance of the
    teacher's outputs, averaged over places. `compute`: the student, or its compiled form."""
    inputs_BN = rows.tokens_BN[:, :-1]
    masks = {} if rows.documents_BN is None else mask_inputs(student, rows.documents_BN[:, :-1])
    # Positions with a label, found on the host: a mask on a GPU would make the host wait for their number.
    labelled_T = moved(labelled_positions(rows.host_lengths_B, inputs_BN.shape[1]), inputs_BN.device)

    def labelled(x_BND: Tensor) -> Tensor:
        return x_BND.flatten(0, 1).index_select(0, labelled_T).float()

    with torch.no_grad(), _outputs(teacher, places) as expected:
        target_TV = labelled(teacher(input_ids=inputs_BN, use_cache=False, **masks).logits)
        p_TV = torch.softmax(target_TV, -1)
        entropy = target_TV.logsumexp(-1).sum() - torch.linalg.vecdot(p_TV, target_TV).sum()
    with _outputs(student, places) as outputs:
        logits_TV = labelled(compute(input_ids=inputs_BN, use_cache=False, **masks).logits)
    # kl_div would take more than twice as long, for the exponentials of a whole vocabulary.
    divergence = F.cross_entropy(logits_TV, p_TV, reduction="sum") - entropy
    errors = []
    for place in places:
        x_TD, y_TD = (labelled(each[place]) for each in (outputs, expected))
        variance = (y_TD - y_TD.mean(0)).square().sum().clamp_min(1e-12)
        errors.append((x_TD - y_TD).square().sum() / variance)
    return divergence, torch.stack(errors).mean()


@contextmanager
def _outputs(model: Any, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Within it, a forward pass of a model leaves the outputs (B, N, D) at these places in the dictionary."""
    caught: dict[Place, Tensor] = {}

    def keep(place: Place) -> Any:
        def act(_: Tensor, leaving: Tensor) -> None:
            caught[place] = leaving

        return act

    handles = [hook_at(model, place, keep(place)) for place in places]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
