"""The language model as training sees it: token ids in, summed loss out, logits never held."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GenerationConfig, PreTrainedModel

from ftray.errors import ModelError
from ftray.model.base import decoder, output_layer
from ftray.model.lora import Routing

IGNORED = -100
_LOGITS_AT_ONCE = 2**26  # 256 MiB in fp32


@dataclass(frozen=True)
class Owners:
    """Whose each sequence or label is, as a number below `count`. [rows]"""

    of_rows: Tensor
    count: int


class LanguageModel(nn.Module):
    """A causal language model whose forward pass is the loss of packed sequences."""

    def __init__(self, model: PreTrainedModel, routing: Routing) -> None:
        super().__init__()
        self.model, self.routing = model, routing

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's blocks: what is compiled, checkpointed and sharded one by one."""
        return list(cast(nn.ModuleList, decoder(self.model).layers))

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Sum the cross-entropy over all positions [batch, seq] with a label.

        Labels are already shifted: position t holds the token that follows it, or -100. A batch
        without labels gives a 0 whose gradient is 0, so that collectives stay in step.
        """
        hidden = decoder_states(self.model, input_ids, position_ids)  # [batch, seq, hidden]
        flat = labels.flatten()
        chosen = (flat != IGNORED).nonzero().squeeze(1)  # [labelled]
        head = output_layer(self.model)
        return linear_cross_entropy(
            hidden.flatten(0, 1).index_select(0, chosen), head.weight, head.bias, flat[chosen]
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: Sequence[int],
        *,
        in_step: bool = False,
    ) -> list[list[int]]:
        """Continue each prompt greedily; the end token is left out.

        With `in_step` all workers make the same number of forward passes, as sharded models need.
        """
        if not prompts:
            return []
        was_training, length = self.training, max(map(len, prompts))
        pad = eos_ids[0] if eos_ids else 0
        ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.model.device
        self.eval()
        out: Tensor = self.model.generate(  # type: ignore[operator]  # transformers' own typing
            input_ids=torch.tensor(ids, device=device),  # [prompts, length]
            attention_mask=torch.tensor(mask, device=device),
            generation_config=_greedy(max_new_tokens, eos_ids, pad),
            synced_gpus=in_step,
        )
        self.train(was_training)
        return [_until(tokens, set(eos_ids)) for tokens in out[:, length:].tolist()]


def owned_losses(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, position_ids: Tensor, owners: Owners
) -> Tensor:
    """Sum the cross-entropy as a LanguageModel does, of each owner's sequences apart. [owners]

    Labels and owners may be on the CPU: then a GPU is not waited for to count the labels.
    """
    flat, device = labels.flatten(), input_ids.device
    chosen = (flat != IGNORED).nonzero().squeeze(1)  # [labelled]
    of_chosen = Owners(owners.of_rows[chosen // labels.shape[1]].to(device), owners.count)
    targets, chosen = flat[chosen].to(device), chosen.to(device)
    hidden = decoder_states(model, input_ids, position_ids)  # [batch, seq, hidden]
    head, hidden = output_layer(model), hidden.flatten(0, 1).index_select(0, chosen)
    return linear_cross_entropy(hidden, head.weight, head.bias, targets, of_chosen)


@torch.no_grad()
def check(model: PreTrainedModel) -> None:
    """Try a base model on 16 tokens: refuse it if its loss would be wrong here.

    Packed sequences must not see one another, and logits must be the output layer of the hidden
    states and nothing more.
    """
    was_training = model.training
    model.eval()
    vocabulary = len(output_layer(model).weight)
    ids = torch.arange(11, 11 + 37 * 16, 37, device=model.device)[None] % vocabulary  # [1, 16]
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    packed = decoder_states(model, ids, positions)
    alone = decoder_states(model, ids[:, 8:], positions[:, 8:])
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    model.train(was_training)
    if _differ(packed[:, 8:], alone):
        raise ModelError(
            f"{type(model).__name__}: packed sequences would see one another in its layers",
            "choose a base with plain attention, such as Llama, Qwen, Mistral or SmolLM",
        )
    if _differ(logits, output_layer(model)(packed)):
        raise ModelError(
            f"{type(model).__name__} transforms its logits after the output layer (scaling or"
            " soft-capping): not supported",
            "choose another base, such as Llama, Qwen, Mistral or SmolLM",
        )


def decoder_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return hidden states [batch, seq, hidden] of sequences that do not see one another.

    transformers separates packed sequences only when position ids restart at each, no mask is
    given and no cache is made; any mask, or its default cache, lets them attend across silently.
    """
    states: Tensor = decoder(model)(
        input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False
    ).last_hidden_state
    return states


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    owners: Owners | None = None,
) -> Tensor:
    """Sum over rows of the cross-entropy of softmax(hidden·Wᵀ + b): [n, h], [v, h], [v], [n] → [].

    With owners of the rows there is a sum for each, [owners], and no gradient of the weights.
    Logits exist for a chunk of rows at a time. The gradients are computed beside them in the
    forward pass, as in Liger (arXiv:2410.10989, §3.2).
    """
    if not torch.is_grad_enabled():  # autograd functions are not told
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, owners)  # type: ignore[no-untyped-call]  # torch
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        owners: Owners | None,
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            sums = _Sums(hidden, weight.to(dtype), bias, ctx.needs_input_grad[:3], owners)
            for start in range(0, len(labels), sums.rows):
                sums.add(slice(start, start + sums.rows), labels)
        ctx.save_for_backward(*sums.gradients(hidden, weight, bias))
        ctx.owners = owners
        return sums.loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, owners = ctx.saved_tensors, ctx.owners
        if owners is not None:
            grad = grad[owners.of_rows, None]  # [n, 1]
        return *[None if g is None else g * grad.to(g.dtype) for g in saved], None, None


class _Sums:
    """Loss and gradients, summed chunk by chunk: the weights' in fp32, the loss in fp64."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: Sequence[bool],
        owners: Owners | None,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden.to(weight.dtype), weight, bias
        self.rows = max(1, _LOGITS_AT_ONCE // len(weight))
        shape = () if owners is None else (owners.count,)
        self.owners = owners
        self.loss = torch.zeros(shape, dtype=torch.float64, device=hidden.device)
        self.of_hidden = torch.zeros_like(self.hidden) if needed[0] else None
        self.of_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.of_bias = torch.zeros(len(weight), device=hidden.device) if needed[2] else None

    def add(self, rows: slice, all_labels: Tensor) -> None:
        hidden, labels = self.hidden[rows], all_labels[rows, None]
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = F.linear(hidden, self.weight, bias).float()  # [rows, vocab]
        log_sum = logits.logsumexp(-1, keepdim=True)
        losses = log_sum - logits.gather(1, labels)  # [rows, 1]
        if self.owners is None:
            self.loss += losses.sum(dtype=torch.float64)
        else:
            self.loss.index_add_(0, self.owners.of_rows[rows], losses[:, 0].double())
        if self.of_hidden is None and self.of_weight is None and self.of_bias is None:
            return
        # softmax minus one at the label, in place of the logits
        of_logits = logits.sub_(log_sum).exp_()
        of_logits.scatter_add_(1, labels, of_logits.new_full(labels.shape, -1.0))
        if self.of_bias is not None:
            self.of_bias += of_logits.sum(0)
        of_logits = of_logits.to(hidden.dtype)
        if self.of_hidden is not None:
            self.of_hidden[rows] = of_logits @ self.weight
        if self.of_weight is not None:
            self.of_weight += of_logits.t() @ hidden

    def gradients(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        made = ((self.of_hidden, hidden), (self.of_weight, weight), (self.of_bias, bias))
        return tuple(None if g is None or like is None else g.to(like.dtype) for g, like in made)


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Compare with room for rounding: a leak or a transformed logit is some tenths."""
    room = 1e-3 if found.dtype == torch.float32 else 5e-2
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() > room * expected.norm())


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _greedy(max_new_tokens: int, eos_ids: Sequence[int], pad: int) -> GenerationConfig:
    """The likeliest token each time: what is left out would come from the model's own settings."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=pad,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
    )


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]
