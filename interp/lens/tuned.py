"""The tuned lens: the logit lens with an affine map before each layer's reading (Belrose et al., 2023).

The map of a layer is h + h A + b, begun at zero, where it is the logit lens, and trained so that the lens says what the
model says in the end: the least KL(model || lens) over a corpus. The stream at the end has no map; it is the model.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from interp.lens.layers import log_probs
from interp.loading.files import open_safetensors, replacing
from interp.model import HookedGPT
from interp.training.data import IGNORED, Batch, Data
from interp.training.parallel import Ranks

_AT_ONCE = 2**24  # logits that are held at once
_FORMAT = "interp tuned lens"
_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A translator for each layer: give it to `logit_lens` as `translate`."""

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    model: str  # its fingerprint
    trained_on: str = ""  # in words

    def __call__(self, stream: Float[Tensor, "row d_model"], layer: int) -> Float[Tensor, "row d_model"]:
        return translated(stream, self.weight[layer].to(stream), self.bias[layer].to(stream))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors file, whole or not at all."""
        tensors = {"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().contiguous()}
        with replacing(Path(path)) as unfinished:
            about = {"format": _FORMAT, "model": self.model, "trained_on": self.trained_on}
            save_file(tensors, unfinished, metadata=about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: HookedGPT) -> "TunedLens":
        """The lens that `save` wrote; raise if it is another model's, or no lens of its shape."""
        file = open_safetensors(Path(path))
        about = file.metadata() or {}
        if about.get("format") != _FORMAT:
            raise ValueError(f"{path} holds no tuned lens: it has {sorted(file.keys())[:8]}")
        if "model" not in about:
            raise ValueError(f"{path} does not say of which model it is the lens")
        if about["model"] != model.fingerprint():
            raise ValueError(
                f"{path} is the lens of another model: of {about['model'][:80]}, and this one is {model.fingerprint()}"
            )
        n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
        shapes = {"bias": [n_layers, d_model], "weight": [n_layers, d_model, d_model]}
        found = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())[:8]}
        if found != shapes:
            raise ValueError(f"{path} has tensors of shapes {found}; this model's lens has {shapes}")
        tensors = {name: file.get_tensor(name) for name in shapes}
        if wrong := {name: str(x.dtype) for name, x in tensors.items() if x.dtype not in _KINDS}:
            raise ValueError(f"{path} has numbers of another kind than {', '.join(map(str, _KINDS))}: {wrong}")
        if broken := [name for name, x in tensors.items() if not x.isfinite().all()]:
            raise ValueError(f"{path} has numbers that are NaN or infinite, in {', '.join(broken)}")
        weight, bias = (tensors[name].to(model.device, copy=True) for name in ("weight", "bias"))
        return cls(weight, bias, about["model"], about.get("trained_on", ""))


def tuned_lens(
    model: HookedGPT,
    data: Data,
    *,
    steps: int = 250,
    batch_size: int = 8,
    lr: float = 1e-3,
    trained_on: str = "",
    progress: bool | Callable[[int, int], None] = True,
) -> tuple[TunedLens, list[dict[str, Any]]]:
    """Train the translators of a model on a corpus; the lens, and the log: the mean KL of each layer at each step.

    Adam, its learning rate falling to 0. `trained_on` says in words what the corpus is; the lens keeps it. A function
    as `progress` is told how many steps are done, and of how many. Under `torchrun` the processes share each batch. A
    layer's logits are gone before the next one's are made.
    """
    if steps < 1 or batch_size < 1 or lr <= 0:
        raise ValueError(f"steps={steps}, batch_size={batch_size}, lr={lr}; all must be above 0")
    data.check(model.cfg)
    ranks, n_layers, d_model = Ranks(), model.cfg.n_layers, model.cfg.d_model
    made: dict[str, Any] = {"device": model.device, "dtype": torch.promote_types(model.dtype, torch.float32)}
    weight, bias = torch.zeros(n_layers, d_model, d_model, **made), torch.zeros(n_layers, d_model, **made)
    maps = [(w.requires_grad_(), b.requires_grad_()) for w, b in zip(weight.unbind(), bias.unbind(), strict=True)]
    leaves = [leaf for each in maps for leaf in each]  # in the memory of the whole
    optimiser = torch.optim.Adam(leaves, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    log: list[dict[str, Any]] = []
    with ranks.joined(), tqdm(total=steps, desc="tuned lens", unit=" steps", disable=progress is not True) as bar:
        for step in range(steps):
            batch = data.batch(step, batch_size, ranks.share(batch_size)).to(model.device)
            streams = _streams(model, batch)
            n_tokens = ranks.sum(torch.tensor(float(len(streams[-1])), device=model.device))
            kl = ranks.sum(_learn(model, maps, streams, n_tokens)).tolist()
            for leaf in leaves:
                assert leaf.grad is not None
                ranks.sum(leaf.grad)
            if not all(map(isfinite, kl)):
                raise ValueError(
                    f"KL is {kl} at step {step}: there are numbers in the model that are none, or lr={lr} is high"
                )
            optimiser.step()
            schedule.step()
            log.append({"step": step} | {f"kl_{layer}": value for layer, value in enumerate(kl)})
            bar.set_postfix(kl=f"{sum(kl) / n_layers:.3f}", refresh=False)
            bar.update()
            if callable(progress):
                progress(step + 1, steps)
    return TunedLens(weight.detach(), bias.detach(), model.fingerprint(), trained_on), log


@torch.no_grad()
def _streams(model: HookedGPT, batch: Batch) -> list[Float[Tensor, "row d_model"]]:
    """The stream before each layer and at the end, where something is asked for."""
    kept: list[Tensor] = []
    with model.recording("blocks.*.hook_resid_pre", lambda x, point: kept.append(x)):  # noqa: ARG005
        kept.append(model(batch.tokens, stop_at_layer=model.cfg.n_layers))
    is_asked = batch.targets != IGNORED
    return [stream[is_asked].to(torch.promote_types(stream.dtype, torch.float32)) for stream in kept]


def _learn(
    model: HookedGPT, maps: list[tuple[Tensor, Tensor]], streams: list[Tensor], n_tokens: Tensor
) -> Float[Tensor, " layer"]:
    """Each layer's KL, a token's share of it; its gradients are left at the maps."""
    kl = torch.zeros(len(maps), device=n_tokens.device)
    grads = [tuple(map(torch.zeros_like, leaves)) for leaves in maps]
    size = max(1, _AT_ONCE // model.cfg.d_vocab_out)
    for *befores, final in zip(*(stream.split(size) for stream in streams), strict=True):
        with torch.no_grad():
            own = log_probs(model, final)
        for layer, (before, leaves) in enumerate(zip(befores, maps, strict=True)):
            with torch.enable_grad():
                said = log_probs(model, translated(before, *leaves))
                loss = F.kl_div(said, own, reduction="sum", log_target=True) / n_tokens
                for total, grad in zip(grads[layer], torch.autograd.grad(loss, leaves), strict=True):
                    total += grad
            kl[layer] += loss.detach()
    for leaves, totals in zip(maps, grads, strict=True):
        for leaf, total in zip(leaves, totals, strict=True):
            leaf.grad = total
    return kl


def translated(
    stream: Float[Tensor, "row d_model"], weight: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"]
) -> Float[Tensor, "row d_model"]:
    """h + h A + b."""
    return stream + torch.addmm(bias, stream, weight)
