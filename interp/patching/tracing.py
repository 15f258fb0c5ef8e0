"""Causal tracing: where a run that has lost its subject gets it back (Meng et al., 2022).

1. Noise on the subject's token embeddings, before positions are added: so many draws, each the same for every site.
2. In each of these runs, one state of the run without noise is put back, or those of several layers around one: what
   attention or an MLP adds in a single layer is often too little to tell.
3. What that brings back of the metric, in the mean over the draws.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.interventions import Patch, Site
from interp.metrics import AnyMetric, measured
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.sweep import Progress, Sweep
from interp.results import Result, as_tokens, labelled, provenance, token_labels, token_pieces

Subject = str | Sequence[str] | Sequence[int] | slice | Tensor


@torch.no_grad()
def causal_tracing(
    model: HookedGPT,
    prompts: Any,
    subject: Subject,
    metric: AnyMetric,
    *,
    noise: float | int = 3.0,
    samples: int = 10,
    site: str = "resid_post",
    window: int = 1,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: Progress = True,
) -> Result:
    """The metric of runs with noise on the subject, with each state of the plain run put back: [layer pos prompt].

    `subject` is a text that stands in every prompt, or one for each; or positions; or a mask, [pos] or [prompt pos].
    The noise is normal, `noise` times the standard deviation of these tokens' embeddings. `site` is the last part of a
    hook's name: "resid_post" for whole states, "attn_out" or "mlp_out" for what is added, of `window` layers around
    the one named (in the paper 10; for an even number, one more before it).

    Values are means over `samples` draws. Beside the prompts are `base`, with noise and nothing put back, and `clean`,
    without noise; `is_subject` says where the subject is. `attrs` have the noise's standard deviation, `sigma`.
    """
    if not noise > 0 or samples < 1 or window < 1:
        raise ValueError(f"noise={noise}, samples={samples}, window={window}; noise must be above 0, the others from 1")
    n_layers = model.cfg.n_layers
    each = range(n_layers) if layers is None else list(layers)
    if not each or any(not -n_layers <= layer < n_layers for layer in each):
        raise ValueError(f"layers={layers}; allowed: some of {-n_layers} to {n_layers - 1}")
    if (axes := Site(site, layer=0).point(model).axes.split())[1] != "pos":
        raise ValueError(f"{site} [{' '.join(axes)}] is not of one position: take resid_post, attn_out, mlp_out …")
    tokens, mask = as_tokens(model, prompts, attention_mask)
    is_subject = _where(model, tokens, mask, subject)
    names = [Site(site, layer).point(model).name for layer in range(n_layers)]
    _, kept = model.run_with_cache(tokens, None, names_filter=[*names, "hook_embed"], attention_mask=mask)
    noised = _Noise(kept["hook_embed"], is_subject, noise, seed)
    chosen = [layer % n_layers for layer in each]
    starts = is_subject.long().argmax(1).tolist()
    rows = [
        Row(prompt, tuple(Patch(Site(names[near], pos=pos), kept[names[near]]) for near in around), start)
        for layer in chosen
        for around in [range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))]
        for pos in range(tokens.shape[1])
        for prompt, start in enumerate(starts)
    ]
    restored, base, work = torch.zeros(len(rows)).double(), torch.zeros(len(tokens)).double(), Counter[str]()
    draws = tqdm(range(samples), desc="tracing", unit=" draws", delay=1.0, disable=progress is not True)
    for draw in draws:
        with model.edit([Patch(Site("hook_embed"), noised.draw())]):
            sweep = Sweep(Base(model, tokens, mask), metric, memory, _part(progress, draw, samples))
            restored += sweep.values(rows).double().cpu() / samples
            base += sweep.base_values().double().cpu() / samples
        work.update(sweep.work)
    labels = {"layer": chosen, "pos": token_labels(model, tokens), "prompt": range(len(tokens))}
    about = provenance(model, metric, tokens, "causal tracing")
    about |= {"site": site, "window": window, "noise": noise, "sigma": noised.sigma, "samples": samples, "seed": seed}
    values = restored.view(*map(len, labels.values()))
    clean = measured(model, tokens, metric, mask).double().cpu().numpy()
    beside = {"clean": ("prompt", clean), "is_subject": (("pos", "prompt"), is_subject.T.cpu().numpy())}
    return labelled(values, labels, "metric", about | work, base).assign_coords(beside)


class _Noise:
    """Embeddings with noise on the subject, drawn on the CPU: the same on every device."""

    def __init__(
        self,
        embed: Float[Tensor, "prompt pos d_model"],
        is_subject: Bool[Tensor, "prompt pos"],
        noise: float,
        seed: int,
    ) -> None:
        self.embed, self.is_subject = embed, is_subject
        of_subject = embed[is_subject].double()
        self.sigma = noise * of_subject.std().item()
        if not self.sigma > 0:
            raise ValueError(
                f"all embeddings of the subject's tokens are {of_subject.flatten()[0]:.6g}: noise has no size"
            )
        self.shape, self.generator = of_subject.shape, torch.Generator().manual_seed(seed)

    def draw(self) -> Float[Tensor, "prompt pos d_model"]:
        """The next of them."""
        drawn = self.sigma * torch.randn(self.shape, generator=self.generator, dtype=torch.float64)
        return self.embed.index_put((self.is_subject,), drawn.to(self.embed), accumulate=True)


def _where(model: HookedGPT, tokens: Tensor, mask: Tensor | None, subject: Subject) -> Bool[Tensor, "prompt pos"]:
    """Where the subject stands in each prompt; raise if it is nowhere in one of them."""
    n, n_pos = tokens.shape
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    if isinstance(subject, Tensor):
        if subject.dtype != torch.bool or subject.shape not in ((n_pos,), (n, n_pos)):
            given = f"{list(subject.shape)} of {subject.dtype}"
            raise ValueError(f"subject: a tensor is a mask, [{n_pos}] or [{n}, {n_pos}] of torch.bool; given: {given}")
        found = subject.to(tokens.device).expand(n, n_pos) & real
    elif isinstance(subject, slice) or (not isinstance(subject, str) and all(isinstance(i, int) for i in subject)):
        columns = torch.arange(n_pos)[subject if isinstance(subject, slice) else _inside(subject, n_pos)]
        found = torch.isin(torch.arange(n_pos), columns).to(tokens.device).expand(n, n_pos) & real
    else:
        texts = [subject] * n if isinstance(subject, str) else [str(each) for each in subject]
        if len(texts) != n:
            raise ValueError(f"subject: {len(texts)} were given for {n} prompts; give one, or as many")
        if model.tokenizer is None:
            raise ValueError("subject: the model has no tokenizer to find a text with; give positions, or a mask")
        found = torch.stack([_standing(model, *each) for each in zip(tokens, real, texts, strict=True)])
    if missing := (~found.any(1)).nonzero().flatten().tolist():
        raise ValueError(f"subject={subject!r} is not in prompts {missing[:8]}")
    return found


def _standing(model: HookedGPT, ids: Tensor, real: Tensor, text: str) -> Bool[Tensor, " pos"]:
    """Which tokens have a part of the text, wherever it stands."""
    pieces = [piece if is_real else b"" for piece, is_real in zip(token_pieces(model, ids), real.tolist(), strict=True)]
    whole, wanted = b"".join(pieces), text.encode()
    begins = [i for i in range(len(whole)) if wanted and whole.startswith(wanted, i)]
    ends = list(accumulate(map(len, pieces)))
    found = [
        any(start < begin + len(wanted) and begin < end for begin in begins)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return torch.tensor(found, device=ids.device) & real


def _inside(listed: Sequence[Any], n_pos: int) -> list[int]:
    if bad := [i for i in listed if not -n_pos <= i < n_pos]:
        raise IndexError(f"subject: positions {bad} are out of range: there are {n_pos}")
    return [i % n_pos for i in listed]


def _part(progress: Progress, draw: int, samples: int) -> Progress:
    """What one draw's sweep tells of: its part of all."""
    if not callable(progress):
        return False
    return lambda done, total: progress(draw * total + done, samples * total)
