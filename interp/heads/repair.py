"""Self-repair: what later parts of a model make up for when a part is taken away.

1. A part's direct effect is what it writes along the direction of an answer, through the final norm with the scale
   that this had when nothing was changed.
2. Under an edit, direct effects change: those of the edited parts by what is taken away, those of later parts by what
   they do otherwise because of it. What is left of the logits' change is the final norm's, which scales otherwise.

McGrath et al. 2023, https://arxiv.org/abs/2307.15771; Rushing and Nanda 2024, https://arxiv.org/abs/2402.15390.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from interp.cache import ActivationCache
from interp.interventions import Edit
from interp.lens.attribution import direct_logit_attribution
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.results import Result, as_tokens, labelled

_NEEDED = ("hook_embed", "hook_pos_embed", "*_out", "*hook_z", "*_post.hook_scale", "ln_final.*scale")


@torch.no_grad()
def self_repair(
    model: HookedGPT,
    tokens: Any,
    edits: Sequence[Edit],
    answer: Answers,
    wrong: Answers | None = None,
    pos: int = -1,
    *,
    attention_mask: Tensor | None = None,
) -> Result:
    """How the direct effect of each head and MLP on a logit (less that of `wrong`) changes under edits: [component
    prompt], the last component being the final norm.

    Coordinates: `kind`, "edited", "norm", or as in `lens.direct_logit_attribution`; `before`, each prompt's logit with
    nothing changed; `total`, how it changes, which all parts sum to but for a `remainder`. Edits are within heads and
    MLPs.
    """
    prompts, mask = as_tokens(model, tokens, attention_mask)
    own = {name for edit in edits for name in _components(model, edit)}
    ends = (*_NEEDED, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    names = [name for name in model.hook_dict if any(fnmatch(name, end) for end in ends)]
    _, before = model.run_with_cache(prompts, names_filter=names, attention_mask=mask)
    with model.edit(edits):
        _, after = model.run_with_cache(prompts, names_filter=names, attention_mask=mask)
    scales = {name: before[name] for name in names if name.endswith("hook_scale")}
    frozen = ActivationCache(dict(after) | scales, model, tokens=prompts, attention_mask=mask)
    first, second = (direct_logit_attribution(model, run, answer, wrong, "head", pos) for run in (before, frozen))
    total, norm = (torch.from_numpy((second[name] - first[name]).to_numpy()) for name in ("total", "remainder"))
    change = torch.cat([torch.from_numpy(second.to_numpy() - first.to_numpy()).double(), norm[None]])
    labels, kinds = first.component.values.tolist(), first.kind.values.tolist()
    kinds = ["edited" if name in own else kind for name, kind in zip(labels, kinds, strict=True)]
    axes = {"component": [*labels, "final norm"], "prompt": range(len(prompts))}
    about = {"method": "self-repair", "of": first.attrs["of"], "model": model.fingerprint()}
    along = {"total": total, "remainder": total - change.sum(0), "before": torch.from_numpy(first.total.to_numpy())}
    found = labelled(change, axes, "contribution", about)
    known: dict[str, Any] = {name: ("prompt", x.numpy()) for name, x in along.items()}
    return found.assign_coords(known | {"kind": ("component", [*kinds, "norm"])})


def _components(model: HookedGPT, edit: Edit) -> list[str]:
    """What an edit is within."""
    point = edit.site.point(model)
    layer = point.layer() if point.name.startswith("blocks.") else 0
    if point.name.endswith(("hook_z", "hook_pattern", "hook_attn_scores", "hook_q")):
        heads = torch.arange(model.cfg.n_heads)
        chosen = heads if edit.site.head is None else heads[edit.site.head].flatten()
        return [f"L{layer}H{head}" for head in chosen.tolist()]
    if ".mlp." in point.name or point.name.endswith("hook_mlp_out"):
        return [f"L{layer} mlp"]
    raise ValueError(f"self_repair is of edits within heads and MLPs; {point.name} is neither")
