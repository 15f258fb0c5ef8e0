"""From logits to a token, and from a token to the next."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.generation import Choice, Sampling, drawn
from interp.heads import patterns
from interp.model import HookedGPT, KVCache
from interp.results import as_tokens, token_texts
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


def choices(
    model: HookedGPT,
    sampling: Sampling,
    logits: Float[Tensor, " d_vocab_out"],
    seen: Int[Tensor, "1 pos"],
    top: int = 20,
) -> Dataset:
    """What becomes of the logits, step by step, of the tokens that are likeliest in the end, along `token`.

    The steps are those of `Sampling.stages`; `own` is the model's own probability, before them. All others together
    have what `attrs` say: how many they are, `n_rest`, and the probability that is left to them, before and after.
    """
    from xarray import Dataset

    found = {name: values[0] for name, values in sampling.stages(logits[None], seen).items()}
    own, probs = logits.float().softmax(-1), found["probability"]
    by_logit = logits.argsort(descending=True, stable=True)  # for tokens to which no probability is left
    ids = by_logit[probs[by_logit].argsort(descending=True, stable=True)][:top]
    rest = {
        name: float((x.double().sum() - x[ids].double().sum()).clamp(min=0))
        for name, x in (("own", own), ("probability", probs))
    }
    return Dataset(
        {name: ("token", x[ids].cpu().numpy()) for name, x in {"own": own, **found}.items()},
        coords={"token": _names(model, ids), "token_id": ("token", ids.cpu().numpy())},
        attrs={"n_rest": len(probs) - len(ids), "n_left": int((probs > 0).sum()), "rest": rest},
    )


def sampled(
    sampling: Sampling, logits: Float[Tensor, " d_vocab_out"], seen: Int[Tensor, "1 pos"], seed: int = 0
) -> Choice:
    """The token that these logits give: that which `generate` writes first with this seed."""
    stages, random = sampling.stages(logits[None], seen), torch.full((1,), torch.nan, dtype=torch.float64)
    probs = stages["probability"]
    if sampling.temperature != 0:
        draw = torch.Generator(logits.device).manual_seed(seed)
        random = torch.rand(1, dtype=torch.float64, device=logits.device, generator=draw)
    token = int(probs.argmax() if sampling.temperature == 0 else drawn(probs, random))
    below = (probs.double().cumsum(-1) - probs.double())[0]
    own = float(logits.float().log_softmax(-1)[token])
    return Choice(token, float(random), {name: values[0] for name, values in stages.items()}, below, own)


def _names(model: HookedGPT, ids: Int[Tensor, " token"]) -> list[str]:
    """Tokens by their texts; outputs that are no tokens by their number."""
    if model.cfg.d_vocab_out != model.cfg.d_vocab:
        return list(map(str, ids.tolist()))
    return list(map(str, token_texts(model, ids)))


@dataclass(frozen=True, eq=False)
class NextStep:
    """One token more, read over a KV cache: in one head, a single query against all keys.

    `errors` are the largest differences from what one pass over the whole text has at its last position.
    """

    tokens: Int[Tensor, "1 pos"]
    q: Float[Tensor, "1 d_head"]
    k: Float[Tensor, "key_pos d_head"]
    v: Float[Tensor, "key_pos d_head"]
    scores: Float[Tensor, "1 key_pos"]
    weights: Float[Tensor, "1 key_pos"]
    z: Float[Tensor, "1 d_head"]
    logits: Float[Tensor, " d_vocab_out"]
    errors: dict[str, float]


@torch.no_grad()
def next_step(model: HookedGPT, prompt: Any, token: int, layer: int, head: int) -> NextStep:
    """What one head does when a token is added to a prompt whose keys and values were kept."""
    tokens, _ = as_tokens(model, prompt, None)
    layer, head = checked_index(model, "layer", layer), checked_index(model, "head", head)
    past, added = KVCache(), torch.tensor([[token]], device=model.device)
    model(tokens, return_type=None, past_kv_cache=past)
    attn = model.blocks[layer].attn
    ends = {"q": "hook_rot_q" if model.cfg.turns(layer) else "hook_q", "scores": "hook_attn_scores"}
    ends |= {"weights": "hook_pattern", "z": "hook_z"}
    names = {name: f"blocks.{layer}.attn.{end}" for name, end in ends.items()}
    logits, cache = model.run_with_cache(added, past_kv_cache=past, names_filter=list(names.values()))
    longer = torch.cat((tokens, added), 1)
    whole = patterns(model, longer, [layer], [head])
    q = cache[names["q"]][0, :, head]
    kept_k, kept_v = (x[0, whole.group(head)] for x in past.of(layer))
    found = {
        "q": q if model.cfg.turns(layer) else attn.q_norm(cache[names["q"]])[0, :, head],
        "k": kept_k,
        "v": kept_v,
        "scores": cache[names["scores"]][0, head],
        "weights": cache[names["weights"]][0, head],
        "z": cache[names["z"]][0, :, head],
        "logits": logits[0, -1],
    }
    steps = whole.steps(layer, head, slice(longer.shape[1] - 1, None))
    weights = torch.from_numpy(steps.weight.to_numpy()).to(q)
    once = {
        "q": whole.queries(layer, head)[0, -1:],
        "k": whole.keys(layer, head)[0],
        "v": whole.values(layer, head)[0],
        "scores": torch.from_numpy(steps.masked.to_numpy()).to(q),
        "weights": weights,
        "z": weights @ whole.values(layer, head)[0],
        "logits": model(longer, last_only=True)[0, -1],
    }
    errors = {name: float((found[name] - x).nan_to_num().abs().max()) for name, x in once.items()}
    return NextStep(longer, **found, errors=errors)
