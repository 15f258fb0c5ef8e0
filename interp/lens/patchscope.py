"""Patchscope: a model tells in a prompt of its own what a stream holds (Ghandeharioun et al., 2024)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from interp.cache import ActivationCache
from interp.interventions import Patch, Site
from interp.lens.layers import Translate
from interp.lens.run import CachedRun
from interp.model import HookedGPT
from interp.recording import positions
from interp.results import as_tokens, text_of, token_texts

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


@torch.no_grad()
def patchscope(
    model: HookedGPT,
    cache: ActivationCache,
    target: Any,
    *,
    pos: int = -1,
    target_pos: int = -1,
    layers: Sequence[int] | None = None,
    target_layer: int | None = None,
    translate: Translate | None = None,
    k: int = 5,
    max_new_tokens: int = 0,
    progress: bool = True,
) -> Dataset:
    """What the prompt `target` goes on with when a stream of another run stands at one of its positions.

    The stream before each of `layers` (all unless given) at `pos` of each cached prompt is put before `target_layer`
    (the same layer unless given) at `target_pos` of the target prompt. Of each run, an `xarray.Dataset`, [layer
    prompt]: the `k` most probable next tokens (`token`, `token_id`, `probability`), and with `max_new_tokens` its
    greedy `text`. `translate(stream, layer)`, a `TunedLens` say, is applied to a stream before it is put there.
    """
    from xarray import Dataset

    run, cfg = CachedRun.of(model, cache, pos), model.cfg
    if not run.is_one:
        raise TypeError(f"pos={pos!r}; one position of each prompt is read")
    tokens, _ = as_tokens(model, target, None)
    if len(tokens) != 1:
        raise ValueError(f"target: {len(tokens)} prompts were given; it is one")
    if not 1 <= k <= cfg.d_vocab_out:
        raise ValueError(f"k={k}; allowed: 1 to {cfg.d_vocab_out}, the tokens that the model knows")
    n_prompts, n_pos = run.n_prompts, tokens.shape[1]
    positions(target_pos, n_pos, None)  # raises if there is none
    at = target_pos % n_pos  # from the front: what is generated moves the end
    read_from = [_checked(layer, cfg.n_layers) for layer in (range(cfg.n_layers) if layers is None else layers)]
    put_to = None if target_layer is None else _checked(target_layer, cfg.n_layers)
    ids, chances, texts = [], [], []
    for layer in tqdm(read_from, desc="patchscope", unit=" layers", delay=1.0, disable=not progress):
        site = Site("resid_pre", layer if put_to is None else put_to, pos=at)
        stream = run.at(f"blocks.{layer}.hook_resid_pre").squeeze(1)
        told = stream if translate is None else translate(stream, layer)
        if told.shape != stream.shape:
            raise ValueError(f"translate: a stream {list(stream.shape)} became {list(told.shape)}; it keeps its shape")
        rows = tokens.expand(n_prompts, -1)
        with model.edit([Patch(site, told.to(model.dtype)[:, None].expand(-1, n_pos, -1))]):
            best = model(rows)[:, -1].float().softmax(-1).topk(k, -1)
            if max_new_tokens:
                made = model.generate(rows, max_new_tokens=max_new_tokens, temperature=0.0, progress=False)
                texts.append([text_of(model, row[n_pos:]) for row in made])
        ids.append(best.indices)
        chances.append(best.values)
    token_id = torch.stack(ids).cpu()
    names = ["layer", "prompt", "top"]
    table: dict[str, Any] = {
        "token": (names, token_texts(model, token_id)),
        "token_id": (names, token_id.numpy()),
        "probability": (names, torch.stack(chances).cpu().numpy()),
    }
    if texts:
        table["text"] = (names[:2], texts)
    about = {
        "method": "patchscope",
        "model": model.fingerprint(),
        "target": text_of(model, tokens[0]),
    }
    about |= {"target_pos": target_pos, "target_layer": "the same" if put_to is None else put_to}
    if translate is not None:
        about["translate"] = getattr(translate, "__name__", type(translate).__name__)
    return Dataset(table, coords={"layer": read_from, "prompt": range(n_prompts), "top": range(k)}, attrs=about)


def _checked(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise ValueError(f"layer={layer}; allowed: {-n_layers} to {n_layers - 1}")
    return layer % n_layers
