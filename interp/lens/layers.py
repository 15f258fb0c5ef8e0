"""The logit lens: what the model would say if it stopped at a layer (nostalgebraist, 2020).

Lens l reads the stream before layer l, the embeddings first; the last reads the stream at its end and is the model.
Between them one can read at l + 0.5, after the layer's attention and before its MLP.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.cache import ActivationCache
from interp.lens.run import CachedRun
from interp.metrics import Answers, answer_ids, check_known
from interp.model import HookedGPT
from interp.recording import PosSlice
from interp.results import token_texts

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

Target = Answers | Literal["next"]
Translate = Callable[[Float[Tensor, "row d_model"], int], Float[Tensor, "row d_model"]]
_AT_ONCE = 2**24  # logits that are held at once


@torch.no_grad()
def logit_lens(
    model: HookedGPT,
    cache: ActivationCache,
    target: Target | None = None,
    wrong: Answers | None = None,
    *,
    k: int = 5,
    pos: PosSlice = None,
    halves: bool = False,
    ranks_before: bool = False,
    translate: Translate | None = None,
    layers: Sequence[int | float] | None = None,
    progress: bool = True,
) -> Dataset:
    """What each layer's stream says through the final norm and W_U: an `xarray.Dataset`, [layer prompt pos].

    It has the `k` most probable tokens (`token`, `token_id`, `probability`, with an axis `top`), the `entropy`, and
    `kl`, KL(model || lens), in nats. With `target` (a token for all prompts or one for each, ids [prompt pos], or
    "next", the token that follows in the prompt) its `target_probability`, and `target_rank`, 0 where it is the most
    probable; with `wrong` too, `logit_difference`, the target's logit less that of `wrong`.

    `halves` adds the readings after attention, at layer + 0.5. `ranks_before` adds `rank_before`: of the `k` tokens the
    ranks one reading earlier, where they differ from `top` by how far a token has come. `translate(stream, layer)` is
    applied before the final norm to all but the last. `layers` are the readings that are made, all unless given.
    """
    if not 1 <= k <= model.cfg.d_vocab_out:
        raise ValueError(f"k={k}; allowed: 1 to {model.cfg.d_vocab_out}, the tokens that the model knows")
    if wrong is not None and target is None:
        raise ValueError("wrong= is what target= is compared with: give both")
    if halves and (translate is not None or "blocks.0.hook_resid_mid" not in model.hook_dict):
        raise ValueError(
            "halves=True reads between attention and MLP, "
            + ("where no translator was trained" if translate is not None else "and this model has no stream there")
        )
    run, n_layers = CachedRun.of(model, cache, pos), model.cfg.n_layers
    names = {layer: f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)}
    if halves:
        names |= {layer + 0.5: f"blocks.{layer}.hook_resid_mid" for layer in range(n_layers)}
    names = dict(sorted(names.items())) | {n_layers: f"blocks.{n_layers - 1}.hook_resid_post"}
    if layers is not None:
        if not set(layers) <= set(names) or not layers:
            raise ValueError(f"layers={list(layers)}; the readings are {list(names)}")
        names = {layer: name for layer, name in names.items() if layer in layers}
    end = run.at(f"blocks.{n_layers - 1}.hook_resid_post").flatten(0, 1)
    streams = {layer: run.at(name).flatten(0, 1) for layer, name in names.items()}
    asked = [_targets(run, each).flatten() for each in (target, wrong) if each is not None]
    n_rows, n_at_once = len(end), max(1, _AT_ONCE // model.cfg.d_vocab_out)
    made: dict[str, list[list[Tensor]]] = {}
    with tqdm(total=n_rows * len(names), desc="lens", unit=" positions", delay=1.0, disable=not progress) as bar:
        for first in range(0, n_rows, n_at_once):
            rows = slice(first, first + n_at_once)
            own, before = log_probs(model, end[rows]), None
            for i, (layer, stream) in enumerate(streams.items()):
                is_last = layer == n_layers
                seen = stream[rows] if is_last or translate is None else translate(stream[rows], int(layer))
                said = own if is_last else log_probs(model, seen)
                numbers = _numbers(said, own, k, [each[rows] for each in asked])
                if ranks_before:
                    numbers["rank_before"] = _ranks(before, numbers["token_id"])
                    before = said
                for name, each in numbers.items():
                    made.setdefault(name, [[] for _ in names])[i].append(each)
                bar.update(len(said))
    shape = run.own_columns.shape
    axes: dict[str, Sequence[Any]] = {"layer": list(map(float, names)) if halves else list(names)}
    axes |= {"prompt": range(shape[0]), "pos": run.columns}
    found = {name: torch.stack(list(map(torch.cat, layers))).unflatten(1, shape) for name, layers in made.items()}
    if run.is_one:
        found = {name: values.squeeze(2) for name, values in found.items()}
        del axes["pos"]
    about = {"method": "logit lens" if translate is None else "tuned lens", "model": model.fingerprint()}
    return _table(model, found, axes, about)


def _targets(run: CachedRun, target: Target) -> Int[Tensor, "prompt pos"]:
    """The token that is asked for at each position; -1: none."""
    model, shape = run.model, run.own_columns.shape
    if isinstance(target, str) and target == "next":
        if (tokens := run.cache.tokens) is None:
            raise ValueError("target='next': this cache does not know its tokens; give ids [prompt pos]")
        tokens = torch.atleast_2d(tokens).to(model.device)
        after = F.pad(tokens[:, 1:], (0, 1), value=-1)
        if run.cache.attention_mask is not None:
            after = after.masked_fill(~F.pad(torch.atleast_2d(run.cache.attention_mask).bool()[:, 1:], (0, 1)), -1)
        return after.gather(1, run.own_columns)
    if isinstance(target, Tensor) and target.ndim == 2:
        if target.shape != shape:
            raise ValueError(f"target: ids have shape {list(target.shape)}; [prompt pos] is {list(shape)}")
        ids = target.to(model.device)
    else:
        ids = answer_ids(model, target).to(model.device)
        if ids.shape[1] != 1 or len(ids) not in (1, shape[0]):
            raise ValueError(f"target: one token for all prompts, or one for each of {shape[0]}; given: {target!r}")
    check_known(ids, model.cfg.d_vocab_out)
    return ids.expand(shape)


def log_probs(model: HookedGPT, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab_out"]:
    """What the final norm and W_U make of streams."""
    logits = model.read_off(model.ln_final.unheard(stream.to(model.dtype))[None])[0]
    return logits.to(stream.dtype).log_softmax(-1)


def _numbers(
    said: Float[Tensor, "row d_vocab_out"],
    own: Float[Tensor, "row d_vocab_out"],
    k: int,
    asked: Sequence[Int[Tensor, " row"]],
) -> dict[str, Tensor]:
    """What is reported of each row."""
    best = said.topk(k, -1)
    found = {
        "token_id": best.indices,
        "probability": best.values.exp(),
        "entropy": torch.special.entr(said.exp()).sum(-1),
        "kl": F.kl_div(said, own, reduction="none", log_target=True).sum(-1),
    }
    if not asked:
        return found
    log_prob, *other = [said.gather(1, ids.clamp(min=0)[:, None]) for ids in asked]
    is_asked = asked[0] >= 0
    found["target_probability"] = torch.where(is_asked, log_prob[:, 0].exp(), torch.nan)
    found["target_rank"] = torch.where(is_asked, (said > log_prob).sum(-1).to(said.dtype), torch.nan)
    if other:
        found["logit_difference"] = torch.where(is_asked, (log_prob - other[0])[:, 0], torch.nan)
    return found


def _ranks(said: Float[Tensor, "row d_vocab_out"] | None, tokens: Int[Tensor, "row top"]) -> Float[Tensor, "row top"]:
    """Of each token, how many are more probable; NaN where nothing was said."""
    if said is None:
        return torch.full(tokens.shape, torch.nan, device=tokens.device)
    ranks = [(said > said.gather(1, ids[:, None])).sum(-1) for ids in tokens.unbind(-1)]
    return torch.stack(ranks, -1).to(said.dtype)


def _table(
    model: HookedGPT, found: dict[str, Tensor], axes: dict[str, Sequence[Any]], about: dict[str, Any]
) -> Dataset:
    from xarray import Dataset

    arrays = {"token": token_texts(model, found["token_id"])}
    arrays |= {name: values.cpu().numpy() for name, values in found.items()}
    coords = {**axes, "top": range(found["token_id"].shape[-1])}
    names = [*axes, "top"]
    return Dataset({name: (names[: x.ndim], x) for name, x in arrays.items()}, coords=coords, attrs=about)
