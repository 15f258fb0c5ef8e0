"""A new association, written into an MLP by a change of rank one (ROME; Meng et al., 2022).

1. The key k* is the mean of the coefficients at the subject's last token, over prompts.
2. The value v*, what the MLP is to put out there, is given; or it is v0 + δ, v0 being what it puts out for k*, and δ
   found by Adam so that the target follows the prompts, and what else is known of the subject stays.
3. u = (C + λ tr(C)/d I)⁻¹ k*, where C is the mean of k kᵀ over a corpus: along it other keys move least.
4. W_out += u (v* - b_out - k* W_out)ᵀ / (u · k*). Then k* W_out + b_out = v*, and no key with u · k = 0 is changed.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint, Hooks
from interp.memories.writing import Part, Rewrite, checked_mlp
from interp.metrics import answer_ids, check_known
from interp.model import HookedGPT
from interp.model.norms import NoNorm
from interp.passages import Corpus, passages
from interp.recording import positions
from interp.results import Result, as_tokens, labelled
from interp.weights.stream import exact

Where = int | str | Int[Tensor, " prompt"]
Chosen = tuple[Int[Tensor, " prompt"], Int[Tensor, " prompt"]]  # rows, and the position in each


@dataclass(frozen=True)
class Search:
    """How a value is looked for; the numbers are the paper's.

    What is minimised is the target's mean negative log-probability, plus `kl` times KL(before || now) of what follows
    the prompts `keep` (say, "{subject} is a"), plus `decay` |δ| / |v0|²; after each step |δ| is at most `clamp` |v0|.
    Where the MLP puts out little, both hold δ down: `stdlib-4l` needs about decay=0, clamp=20.
    """

    keep: Any = None
    steps: int = 20
    lr: float | int = 0.5
    kl: float | int = 0.0625
    decay: float | int = 0.5
    clamp: float | int = 4
    enough: float | int = 0.05  # a loss at which the search stops


@torch.no_grad()
def key_covariance(
    model: HookedGPT,
    corpus: Corpus,
    layer: int,
    *,
    n_ctx: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Result:
    """The mean of k kᵀ, k a token's coefficients in this layer, over a corpus as `passages` reads it: [neuron other].

    It is summed in double precision, in a memory that does not grow with the corpus; `attrs["n_tokens"]` were read.
    """
    layer = checked_mlp(model, layer)
    name, d_mlp, n_tokens = f"blocks.{layer}.mlp.hook_post", model.cfg.d_mlp, 0
    total = torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=model.device)
    with tqdm(desc="key covariance", unit=" tokens", delay=1.0, disable=not progress) as bar:
        for passage in passages(model, corpus, n_ctx, batch_size, max_tokens):
            tokens, mask = passage.tokens.to(model.device), passage.mask.to(model.device)
            _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=name, stop_at_layer=layer + 1)
            keys = cache[name][mask].double()
            total.addmm_(keys.T, keys)
            n_tokens += len(keys)
            bar.update(len(keys))
    about = {"method": "key covariance", "model": model.fingerprint(), "layer": layer, "n_tokens": n_tokens}
    return labelled(total / n_tokens, {"neuron": range(d_mlp), "other": range(d_mlp)}, "covariance", about)


def insert(
    model: HookedGPT,
    layer: int,
    prompts: Any,
    target: str | int,
    *,
    at: Where = -1,
    value: Float[Tensor, " d_model"] | None = None,
    covariance: Result | Float[Tensor, "neuron other"] | None = None,
    ridge: float | int = 1e-4,
    search: Search | None = None,
    attention_mask: Tensor | None = None,
) -> Rewrite:
    """Make `target` follow the prompts, by a change of rank one of a layer's W_out, in place.

    `at` is the subject's last token in each prompt: a position, one for each, or the subject's text (its last
    occurrence). `value` is what the MLP shall put out there, before any norm on outputs; else a `Search` finds one.
    `covariance` is `key_covariance`'s; without it, keys are taken to be uncorrelated. `ridge` is λ.
    `about` of what comes back has the norms of key, value and change, and the search's last loss and steps.
    """
    layer = checked_mlp(model, layer)
    if value is not None and search is not None:
        raise ValueError("value= is given: there is nothing to search for")
    if ridge < 0:
        raise ValueError(f"ridge={ridge}; it cannot be negative")
    metric = _metric_of_keys(model, layer, covariance, ridge)
    tokens, mask = as_tokens(model, prompts, attention_mask)
    where, block = _chosen(model, tokens, mask, at), model.blocks[layer]
    with torch.no_grad():
        name = f"blocks.{layer}.mlp.hook_post"
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=name, stop_at_layer=layer + 1)
        key = cache[name][where].double().mean(0)
        W, bias = block.mlp.W_out.double(), block.mlp.b_out
        now = key @ W if bias is None else key @ W + bias.double()
        u = key if metric is None else torch.cholesky_solve(key[:, None], torch.linalg.cholesky(metric))[:, 0]
        along = u @ key
    if not along > 0:
        raise ValueError(f"the key is zero: no memory of layer {layer} has a coefficient at the subject's last token")
    about: dict[str, Any] = {"method": "rank-one insertion", "layer": layer, "ridge": ridge}
    about |= {"covariance": "none" if covariance is None else "given", "key_norm": key.norm().item()}
    if value is None:
        ids = answer_ids(model, target).to(model.device)
        check_known(ids, model.cfg.d_vocab_out)
        value, found = _found(model, layer, (tokens, mask, where), ids[0, 0], now, at, search or Search())
        about |= found
    elif value.shape != now.shape:
        raise ValueError(f"value has shape {list(value.shape)}; the MLP puts out {list(now.shape)}")
    change = torch.outer(u, value.detach().to(now) - now) / along
    about |= {"value_norm": value.double().norm().item(), "change_norm": change.norm().item()}
    return Rewrite.of(model, {Part(layer, "W_out"): W + change}, about)


def _metric_of_keys(
    model: HookedGPT, layer: int, covariance: Result | Tensor | None, ridge: float | int
) -> Float[Tensor, "neuron other"] | None:
    """C + λ tr(C)/d I."""
    if covariance is None:
        return None
    if not isinstance(covariance, Tensor):
        if covariance.attrs.get("layer") != layer:
            raise ValueError(f"the covariance is of layer {covariance.attrs.get('layer')}, not of layer {layer}")
        covariance = torch.from_numpy(covariance.to_numpy())
    d_mlp = model.cfg.d_mlp
    if covariance.shape != (d_mlp, d_mlp) or not covariance.isfinite().all():
        raise ValueError(f"a covariance is finite, {[d_mlp, d_mlp]}; given: {list(covariance.shape)}")
    C = covariance.to(model.device, torch.float64)
    metric = C + ridge * C.trace() / d_mlp * torch.eye(d_mlp, dtype=C.dtype, device=C.device)
    if torch.linalg.cholesky_ex(metric).info:
        raise ValueError(f"the covariance is not positive definite with ridge={ridge}; a larger one makes it so")
    return metric


def _chosen(model: HookedGPT, tokens: Int[Tensor, "prompt pos"], mask: Tensor | None, at: int | str | Tensor) -> Chosen:
    """The rows, and in each the column that is meant."""
    n_rows, n_pos = tokens.shape
    rows = torch.arange(n_rows, device=tokens.device)
    if isinstance(at, int):
        found = positions(at, n_pos, mask)
        assert found is not None
        return rows, found.of(torch.arange(n_pos, device=tokens.device).expand(n_rows, -1), 1)
    if isinstance(at, Tensor):
        if at.shape != (n_rows,) or not ((at >= 0) & (at < n_pos)).all():
            raise ValueError(f"at={at.tolist()}; there are {n_rows} prompts of {n_pos} positions")
        return rows, at.to(tokens.device)
    columns = []
    for row, ids in enumerate(tokens.tolist()):
        real = list(range(n_pos)) if mask is None else mask[row].nonzero().flatten().tolist()
        columns.append(real[_end_of(model, [ids[i] for i in real], at)])
    return rows, torch.tensor(columns, device=tokens.device)


def _end_of(model: HookedGPT, ids: list[int], subject: str) -> int:
    """The token with which the last occurrence of a text ends."""
    if model.tokenizer is None:
        raise ValueError(f"at={subject!r}: this model has no tokenizer; give positions")
    text = model.tokenizer.decode(ids)
    if not subject or subject not in text:
        raise ValueError(f"at={subject!r} does not occur in {text!r}")
    n_times = text.count(subject)
    return next(i for i in range(len(ids)) if model.tokenizer.decode(ids[: i + 1]).count(subject) == n_times)


def _found(
    model: HookedGPT,
    layer: int,
    run: tuple[Tensor, Tensor | None, Chosen],
    target: Int[Tensor, ""],
    now: Float[Tensor, " d_model"],
    at: Where,
    search: Search,
) -> tuple[Float[Tensor, " d_model"], dict[str, Any]]:
    """A value with which the target follows, and how it was found."""
    if search.steps < 1:
        raise ValueError(f"search: steps={search.steps}; it takes at least 1")
    if torch.is_inference_mode_enabled():
        raise ValueError("a search needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
    size = now.norm()
    if not size > 0:
        raise ValueError("the MLP puts out nothing for this key, by which a search could be measured: give value=")
    kept = before = None
    if search.keep is not None:
        if isinstance(at, Tensor):
            raise ValueError(
                "search: keep= needs the subject's place in its prompts too: at= as a text or one position"
            )
        tokens, mask = as_tokens(model, search.keep, None)
        kept = (tokens, mask, _chosen(model, tokens, mask, at))
        with torch.no_grad():
            before = _last(model, kept, layer, None)
    start = torch.promote_types(model.dtype, torch.float32)
    delta = torch.zeros_like(now, dtype=start).requires_grad_()
    optimiser, loss, steps = torch.optim.Adam([delta], search.lr), torch.tensor(torch.inf), 0
    with torch.enable_grad():
        for steps in range(search.steps + 1):
            loss = -_last(model, run, layer, delta)[:, target].mean()
            if kept is not None and before is not None:
                loss = loss + search.kl * F.kl_div(
                    _last(model, kept, layer, delta), before, reduction="batchmean", log_target=True
                )
            loss = loss + search.decay * delta.norm() / size.to(start) ** 2
            if loss < search.enough or steps == search.steps:
                break
            delta.grad = torch.autograd.grad(loss, delta)[0]
            if steps == 0 and not delta.grad.any():
                raise ValueError(f"what layer {layer} writes at the subject's last token does not reach the prediction")
            optimiser.step()
            with torch.no_grad():
                delta *= (search.clamp * size.to(start) / delta.norm()).clamp(max=1)
    return now + delta.detach().to(now), {"search_loss": loss.item(), "search_steps": steps}


def _last(
    model: HookedGPT, run: tuple[Tensor, Tensor | None, Chosen], layer: int, delta: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "prompt d_vocab_out"]:
    """Log-probabilities behind each prompt, what the MLP puts out at the chosen positions moved by δ."""
    tokens, mask, where = run
    with model.hooks([] if delta is None else _moved(model, layer, where, delta)):
        logits = model(tokens, attention_mask=mask)
    return exact(logits[_chosen(model, tokens, mask, -1)]).log_softmax(-1)


def _moved(model: HookedGPT, layer: int, where: Chosen, delta: Float[Tensor, " d_model"]) -> Hooks:
    """Hooks that add to what the MLP puts out before any norm on outputs."""
    block, at = model.blocks[layer], f"blocks.{layer}."

    def add(out: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001
        return out.index_put(where, out[where] + delta.to(out))

    norm = getattr(block, "ln2_post", NoNorm())
    if model.cfg.norm_position == "post" or isinstance(norm, NoNorm):
        return [(f"{at}hook_mlp_out", add)]
    keys: list[Tensor] = []

    def keep(post: Tensor, hook: HookPoint) -> None:  # noqa: ARG001
        keys.append(post[where])

    def put(out: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001
        raw = block.mlp.down(keys.pop())
        return out.index_put(where, norm.unheard(raw + delta.to(raw)))

    return [(f"{at}mlp.hook_post", keep), (f"{at}hook_mlp_out", put)]
