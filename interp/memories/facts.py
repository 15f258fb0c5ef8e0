"""Knowledge neurons: the memories that a fact's probability rests on (Dai et al., 2022).

1. At the position that predicts the answer, all coefficients w of a layer are scaled together, from 0 to what they are.
2. Attr(i) = w_i · mean over points α of dP(answer | α w) / d(α w_i): integrated gradients, of the probability.
3. Coarse: in each prompt, those above a share of the largest. Refined: those that many paraphrases have in common.
4. Suppressed or amplified, they should move the fact's probability, and leave that of other facts.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.cache import ActivationCache
from interp.hooks import HookPoint
from interp.interventions import Scale, Site
from interp.metrics import Answers, AnyMetric, Metric, Rows, answer_ids, check_known, measured, values_of
from interp.model import HookedGPT
from interp.recording import Positions, positions
from interp.results import Result, as_tokens, labelled, provenance, token_texts
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

Rule = Literal["midpoint", "right"]


@torch.no_grad()
def memory_attribution(
    model: HookedGPT,
    prompts: Any,
    answer: Answers,
    *,
    layers: Sequence[int] | None = None,
    steps: int = 20,
    rule: Rule = "midpoint",
    pos: int = -1,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> Result:
    """What each memory gives to the probability of `answer` at `pos`, by integrated gradients: [layer neuron prompt].

    The path is from no memory of the layer to all as they are, in `steps` points; `rule="right"` takes the right ends
    of the steps, as the paper does. In the limit the memories of a layer sum to P(all) - P(none), coordinates
    `probability` and `without` (the layer's memories); `error`, what the sum is off by, is beside them, and
    `attrs["completeness_error"]` is its largest. Of several answers for a prompt, the sum of their probabilities.
    """
    if model.cfg.attn_only:
        raise ValueError("memory_attribution: the model is attn_only, it has no MLP and so no memories")
    if torch.is_inference_mode_enabled():
        raise ValueError("attribution needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
    if steps < 1 or rule not in ("midpoint", "right"):
        raise ValueError(f"steps={steps}, rule={rule!r}; allowed: steps from 1, rule 'midpoint', 'right'")
    each = range(model.cfg.n_layers) if layers is None else layers
    chosen = list(dict.fromkeys(checked_index(model, "layer", layer) for layer in each))
    if not chosen:
        raise ValueError("layers: none are given")
    tokens, mask = as_tokens(model, prompts, attention_mask)
    ids = answer_ids(model, answer).to(model.device)
    check_known(ids, model.cfg.d_vocab_out)
    ids = Rows.of(tokens).each(ids, "answers")
    at = positions(pos, tokens.shape[1], mask)
    assert at is not None
    path = _Path(model, tokens, mask, at, ids)
    offset = 0.5 if rule == "midpoint" else 1.0
    points = [(step + offset) / steps for step in range(steps)]
    found, ends = [], []
    with tqdm(total=len(chosen) * steps, desc="attribution", unit=" points", delay=1.0, disable=not progress) as bar:
        for layer in chosen:
            resid = model(tokens, attention_mask=mask, stop_at_layer=layer)
            total = torch.zeros(len(tokens), model.cfg.d_mlp, dtype=torch.float64, device=model.device)
            for alpha in points:
                total += path.slope(resid, layer, alpha)[2].double()
                bar.update()
            some, coefficients, _ = path.slope(resid, layer, 1.0)
            ends.append(torch.stack((some, path.slope(resid, layer, 0.0)[0])).double())
            found.append((coefficients.double() * total / steps).T)
    values, (probability, without) = torch.stack(found), torch.stack(ends, 1)
    error = values.sum(1) - (probability - without)
    about = {
        "method": "integrated gradients of memories",
        "model": model.fingerprint(),
        "steps": steps,
        "rule": rule,
        "completeness_error": error.abs().max().item(),
    }
    axes = {"layer": chosen, "neuron": range(model.cfg.d_mlp), "prompt": range(len(tokens))}
    beside = {
        "without": (("layer", "prompt"), without.cpu().numpy()),
        "error": (("layer", "prompt"), error.cpu().numpy()),
    }
    return labelled(values, axes, "attribution", about).assign_coords(
        {"probability": ("prompt", probability[0].cpu().numpy()), **beside}
    )


def knowledge_neurons(attribution: Result, *, threshold: float | int = 0.2, share: float | int = 0.7) -> Result:
    """The memories that paraphrases of a fact have in common, by their mean attribution: [memory], "L2N17" first.

    Of a result of `memory_attribution` over the paraphrases. In each, those above `threshold` times its largest count;
    kept are those that count in more than `share` of them (coordinate `share`). None may be left.
    """
    if attribution.dims != ("layer", "neuron", "prompt"):
        raise ValueError(f"this takes the result of memory_attribution; its axes are {list(attribution.dims)}")
    if not (0 <= threshold < 1 and 0 <= share < 1):
        raise ValueError(f"threshold={threshold}, share={share}; both are from 0 to below 1")
    values = torch.from_numpy(attribution.to_numpy())
    counts = values > threshold * values.amax((0, 1), keepdim=True).clamp(min=0)
    mean, part = values.mean(2), counts.double().mean(2)
    layers, neurons = (part > share).nonzero().T
    order = mean[layers, neurons].argsort(descending=True)
    layers, neurons = layers[order], neurons[order]
    shown = attribution.layer.to_numpy()[layers.numpy()]
    labels = [f"L{layer}N{neuron}" for layer, neuron in zip(shown.tolist(), neurons.tolist(), strict=True)]
    about = {**attribution.attrs, "threshold": threshold, "least_share": share}
    found = labelled(mean[layers, neurons], {"memory": labels}, "attribution", about)
    return found.assign_coords(share=("memory", part[layers, neurons].numpy()))


def scaled(
    model: HookedGPT,
    memories: Iterable[str],
    prompts: Any,
    metric: AnyMetric,
    *,
    factors: Sequence[float | int] = (0, 2),
    pos: int | None = -1,
    attention_mask: Tensor | None = None,
) -> Result:
    """The metric of each prompt with these memories suppressed (0), amplified (2) or otherwise scaled: [factor prompt].

    At `pos`, or at every position (None). `base` is the metric with nothing changed, so that `result - result.base`
    is what it did; do it for prompts that have to do with the memories, and for others.
    """
    listed = list(memories)
    sites = memory_sites(listed, pos=pos)
    tokens, mask = as_tokens(model, prompts, attention_mask)
    rows = []
    for factor in factors:
        with model.edit([Scale(site, factor) for site in sites]):
            rows.append(measured(model, tokens, metric, mask).double())
    if not rows:
        raise ValueError("factors: none are given")
    about = provenance(model, metric, tokens, "scaled memories") | {
        "memories": ", ".join(listed),
        "pos": "all" if pos is None else pos,
    }
    axes = {"factor": list(factors), "prompt": range(len(tokens))}
    return labelled(torch.stack(rows), axes, "metric", about, measured(model, tokens, metric, mask))


@torch.no_grad()
def next_tokens(
    model: HookedGPT, memories: Iterable[str], tokens: Tensor, factor: float | int = 0, k: int = 10, *,
    pos: int | None = -1, metric: Metric | None = None, cache: ActivationCache | None = None,
) -> Dataset:  # fmt: skip
    """What follows a prompt, [pos] or [1 pos], with these memories as they are and scaled: an `xarray.Dataset` [rank].

    The k tokens that are most probable in one run or the other, each with its probability `before` and `after`. The
    memories are scaled at `pos`, or everywhere (None). `attrs["kl"]` is how far the prediction moved, in nats,
    `attrs["rest"]` what is left for all other tokens, before and after, and `attrs["metric"]` what `metric`, one of the
    last position, is before and after.

    Nothing before the first of these layers is computed twice; with `cache`, a run of the prompt with the streams of
    all layers, not at all. The cache may go on behind the prompt, where no later token changes an earlier one.
    """
    from xarray import Dataset

    listed = list(memories)
    sites = memory_sites(listed, pos=pos)
    tokens = torch.atleast_2d(tokens).to(model.device)
    if len(tokens) != 1:
        raise ValueError(f"{len(tokens)} prompts were given; this is told of one")
    if not 1 <= k <= model.cfg.d_vocab_out:
        raise ValueError(f"k={k}; allowed: 1 to {model.cfg.d_vocab_out}, the tokens that the model predicts")
    if metric is not None and metric.positions != (-1,):
        raise ValueError(f"metric: {metric.name} reads the positions {metric.positions}; give one of the last")
    first = min(site.layer for site in sites if site.layer is not None)
    own, stream = _as_it_is(model, tokens, first) if cache is None else _from_cache(model, tokens, first, cache)
    with model.edit([Scale(site, factor) for site in sites]):
        changed = model(stream, start_at_layer=first, last_only=True)[:, -1:]
    before, after = (logits[0, 0].double().log_softmax(-1) for logits in (own, changed))
    ids = torch.maximum(before, after).topk(k).indices
    kl = (after.exp() * (after - before)).nan_to_num().sum().item()
    found: dict[str, Any] = {"token": token_texts(model, ids), "token_id": ids.cpu().numpy()}
    shown = {name: of[ids].exp() for name, of in (("before", before), ("after", after))}
    found |= {name: of.cpu().numpy() for name, of in shown.items()}
    about = {"method": "next tokens, memories scaled", "memories": ", ".join(listed), "factor": factor, "kl": kl}
    about |= {"pos": "all" if pos is None else pos, "model": model.fingerprint()}
    about["rest"] = [max(0.0, 1 - of.sum().item()) for of in shown.values()]
    if metric is not None:
        about["metric"] = [values_of(metric, logits, Rows.of(tokens)).item() for logits in (own, changed)]
    return Dataset({name: ("rank", x) for name, x in found.items()}, {"rank": range(k)}, about)


def memory_sites(memories: Iterable[str], *, pos: int | None = None) -> list[Site]:
    """Where the coefficients of these memories ("L2N17") are, one site for each layer: to be edited."""
    by_layer: dict[int, list[int]] = {}
    for label in map(str, memories):
        if (found := re.fullmatch(r"L(\d+)N(\d+)", label)) is None:
            raise ValueError(f"{label!r} is no memory; they are named like 'L2N17'")
        by_layer.setdefault(int(found[1]), []).append(int(found[2]))
    if not by_layer:
        raise ValueError("no memories are given")
    return [Site("post", layer, neuron=neurons, pos=pos) for layer, neurons in sorted(by_layer.items())]


def _as_it_is(
    model: HookedGPT, tokens: Int[Tensor, "1 pos"], layer: int
) -> tuple[Float[Tensor, "1 1 d_vocab_out"], Float[Tensor, "1 pos d_model"]]:
    """The logits at the end of a prompt, and the stream before a layer."""
    stream = model(tokens, stop_at_layer=layer)
    return model(stream, start_at_layer=layer, last_only=True)[:, -1:], stream


def _from_cache(
    model: HookedGPT, tokens: Int[Tensor, "1 pos"], layer: int, cache: ActivationCache
) -> tuple[Float[Tensor, "1 1 d_vocab_out"], Float[Tensor, "1 pos d_model"]]:
    """The same, of a run of these tokens, and perhaps more."""
    n = tokens.shape[1]
    if cache.tokens is None or not torch.equal(cache.tokens[:, :n].to(tokens), tokens):
        raise ValueError("cache is a run of other tokens, or does not say of which")
    if cache.tokens.shape[1] > n and model.cfg.attention_dir == "bidirectional":
        raise ValueError(f"cache is a run of more than these {n} tokens, and in this model later ones change earlier")
    end = cache["resid_post", -1][:, n - 1 : n]
    stream = model(tokens, stop_at_layer=0) if layer == 0 else cache["resid_post", layer - 1][:, :n]
    return model.read_off(model.ln_final(end)), stream


class _Path:
    """Runs with all coefficients of a layer scaled together, at one position of each prompt."""

    def __init__(
        self,
        model: HookedGPT,
        tokens: Int[Tensor, "prompt pos"],
        mask: Tensor | None,
        at: Positions,
        answers: Int[Tensor, "prompt answer"],
    ) -> None:
        self.model, self.mask, self.at, self.answers = model, mask, at, answers
        columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        self.where = torch.arange(len(tokens), device=tokens.device), at.of(columns, 1)

    @torch.enable_grad()
    def slope(
        self, resid: Float[Tensor, "prompt pos d_model"], layer: int, alpha: float
    ) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt neuron"], Float[Tensor, "prompt neuron"]]:
        """The answer's probability, the coefficients before they are scaled, and the gradient behind."""
        seen: list[Tensor] = []

        def scale(post: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001
            own = post[self.where].detach()
            scaled = (alpha * own).requires_grad_()
            seen.extend((own, scaled))
            return post.detach().index_put(self.where, scaled)

        with self.model.hooks([(f"blocks.{layer}.mlp.hook_post", scale)]):
            logits = self.model(resid, attention_mask=self.mask, start_at_layer=layer)
        exact = logits[self.where].float() if logits.dtype.itemsize == 2 else logits[self.where]
        probability = exact.softmax(-1).gather(1, self.answers).sum(1)
        own, moved = seen
        slope = torch.autograd.grad(probability.sum(), moved)[0]
        return probability.detach(), own, slope
