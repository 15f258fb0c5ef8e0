"""How does a model know who is meant, where of two names one stands again? The circuit, from the answer backwards.

1. Prompts: "Then, Mary and John went to the store. John gave a drink to", with names, templates and their order drawn;
   `flipped` exchanges the answers, in `others` there are three other names. The logit of the name that stands once (IO)
   less that of the one that stands twice (S).
2. Patching of the stream, by layer and place, and of heads: what brings the answer into the flipped run.
3. Path patching from `others`: which heads tell the logits (name movers, and negative ones), which heads tell the
   movers' queries (S-inhibition), which tell those their queries, keys or values (where from S2 they look at S1,
   duplicate token; where behind it, induction), and which tell the keys of induction heads (previous token).
4. Where they look. What is lost without them; which heads step in when the movers are gone (backup movers).

Wang et al. 2023, https://arxiv.org/abs/2211.00593.

Finding, of the planted model with distractors: exactly the planted heads, each in its role, the backup too. Without the
mover the answer stays, without the mover and its backup it is gone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from interp import HookedGPT, heads, metrics, plots
from interp.interventions import Ablate, Site
from interp.metrics import Metric
from interp.patching import activation_patching, path_patching, with_edits
from interp.results import Result, labelled
from interp.zoo import planted
from interp.zoo.two_names import NAMES, PLACES, TwoNames, planted_two_names, single_token_names, two_names

Head = tuple[int, int]
Roles = dict[str, list[Head]]
How = Literal["zero", "mean"]
PLANTED = "indirect_object"
# The circuit that Wang et al. report of GPT-2 small.
PUBLISHED: Roles = {
    "name mover": [(9, 9), (10, 0), (9, 6)],
    "negative mover": [(10, 7), (11, 10)],
    "backup mover": [(10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9)],
    "S-inhibition": [(7, 3), (7, 9), (8, 6), (8, 10)],
    "induction": [(5, 5), (5, 8), (5, 9), (6, 9)],
    "duplicate token": [(0, 1), (0, 10), (3, 0)],
    "previous token": [(2, 2), (4, 11)],
}
_PAIRS = [("END", "IO"), ("END", "S1"), ("END", "S2"), ("S2", "S1"), ("S2", "S1+1"), ("S1+1", "S1")]


def main(
    model: str = PLANTED,
    distractors: int = 3,
    prompts: int = 16,
    how: How | None = None,
    least: float = 0.05,
    seed: int = 0,
    out: Path = Path("runs/indirect_object"),
    png: bool = False,
) -> None:
    """Find the heads by which a model knows who is meant, and what they do.

    Args:
        model: the planted one, or a bundled name, a folder, a name on the hub: its tokenizer must know names.
        distractors: heads with random weights in each layer of the planted model.
        prompts: how many.
        how: what stands in for heads that are knocked out: zero (the planted model), or their mean over `others`.
        least: the share of the logit difference that a head must change to be taken in.
        seed: of the prompts, and of the planted model.
        out: where the results go. Patching that was stopped goes on there.
        png: draw the figures as PNG, too.
    """
    built = planted.indirect_object(distractor_heads=distractors, seed=seed) if model == PLANTED else None
    of = HookedGPT.from_pretrained(model) if built is None else built.model
    names = two_names(of, prompts, seed) if built is None else planted_two_names(built, prompts, seed)
    if built is None and (dropped := sorted(set(NAMES) - set(single_token_names(of)))):
        print(f"{len(dropped)} of {len(NAMES)} names are not single tokens, and left out: {', '.join(dropped)}")
    chosen: How = how or ("mean" if built is None else "zero")
    found = study(of, names, how=chosen, least=least, seed=seed, folder=out / "sweeps")
    config = {"model": model, "distractors": distractors, "prompts": prompts, "how": chosen, "least": least}
    if built is not None:
        found.figures["planted"] = plots.circuit_graph(built, title="What was planted")  # type: ignore[index]
    save(found, out, "indirect_object", config=config | {"seed": seed}, models={model: of}, png=png)


def study(
    model: HookedGPT,
    names: TwoNames,
    *,
    how: How = "zero",
    least: float = 0.05,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Found:
    """All of it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    metric = metrics.logit_diff(model, names.indirect, names.subject)
    attention = _attention(model, names)
    roles, paths = _circuit(model, names, metric, attention.mean("prompt"), least, progress)
    own = _away(model, names, roles["name mover"], how)
    repair = heads.self_repair(model, names.tokens, own, names.indirect, names.subject, attention_mask=names.mask)
    base = metrics.measured(model, names.tokens, metric, names.mask).double()
    flipped = metrics.measured(model, names.flipped, metric, names.mask).double()
    roles["backup mover"] = _rising(repair, roles, least * abs(float(base.mean())))
    patched = _patched(model, names, metric, folder, progress)
    without = _without(model, roles, seed)
    sets = {name: _away(model, names, some, how) for name, some in without.items()}
    file = None if folder is None else folder / "knocked_out.jsonl"
    lost = with_edits(model, names.tokens, sets, metric, attention_mask=names.mask, file=file, progress=progress)
    everything = np.concatenate([lost.base.to_numpy()[None], lost.to_numpy()])
    axes = {"without": ["nothing", *sets], "prompt": range(len(base))}
    result = Dataset(
        {
            **patched,
            "path": paths,
            "attention": attention.mean("prompt", keep_attrs=True),
            "repair": repair.mean("prompt", keep_attrs=True).reset_coords(drop=True),
            "logit_difference": labelled(torch.from_numpy(everything), axes, "logit difference", {"kind": how}),
        },
        attrs={"method": "indirect object", "model": model.fingerprint()},
    )
    findings = {
        "roles": {role: list(map(_name, some)) for role, some in roles.items() if some},
        "logit_difference": float(base.mean()),
        "logit_difference_flipped": float(flipped.mean()),
        "share_right": float((base > 0).double().mean()),
        "without": {name: float(result.logit_difference.sel(without=name).mean()) for name in result.without.values},
        "least_share_of_those_found": _margin(paths, roles, above=True),
        "most_share_of_others": _margin(paths, roles, above=False),
    }
    if _is_gpt2_small(model):
        findings["published"] = {role: list(map(_name, some)) for role, some in PUBLISHED.items()}
    return Found(result, _figures(result, roles), _table(result, roles, findings), findings)


def _circuit(
    model: HookedGPT, names: TwoNames, metric: Metric, attention: DataArray, least: float, progress: bool
) -> tuple[Roles, DataArray]:
    """The heads in their roles, from the logits backwards; and by what share the difference falls when each of them
    tells a receiver what it says of other names, [into layer head]."""
    n_layers, n_heads, n_prompts = model.cfg.n_layers, model.cfg.n_heads, len(names.tokens)
    told, roles = dict[str, np.ndarray](), Roles()

    def heard(into: str, receivers: Sequence[Site]) -> list[Head]:
        """Whoever tells the receivers, or the logits, something that matters, the most important first."""
        before = max((each.layer or 0 for each in receivers), default=n_layers)
        senders = [Site("z", layer, head=head) for layer in range(before) for head in range(n_heads)]
        lost = np.zeros((n_layers, n_heads, n_prompts))
        if senders:
            options: dict[str, Any] = {"attention_mask": names.mask, "progress": progress}
            hearing = [receivers or "logits"]
            found = path_patching(model, names.tokens, names.others, senders, hearing, metric, **options)
            change = (found - found.base)[0].to_numpy()
            lost[:before] = -change.reshape(before, n_heads, n_prompts) / float(found.base.mean())
        told[into], error = lost.mean(2), lost.std(2, ddof=1) / n_prompts**0.5
        is_clear = (abs(told[into]) >= least) & (abs(told[into]) >= 3 * error)
        return sorted(_places(is_clear), key=lambda place: -abs(told[into][place]))

    def known() -> list[Head]:
        return [place for some in roles.values() for place in some]

    to_logits = heard("logits", [])
    roles["name mover"] = [place for place in to_logits if told["logits"][place] > 0]
    roles["negative mover"] = [place for place in to_logits if told["logits"][place] < 0]
    if not roles["name mover"]:
        most = float(told["logits"].max())
        raise ValueError(
            f"no head moves a name: the most that one tells the logits is {most:.1%}, and least={least:.1%}"
        )
    into_queries = heard("movers q", _into(model, "q", roles["name mover"]))
    roles["S-inhibition"] = [place for place in into_queries if place not in known()]
    for slot in "qkv" if roles["S-inhibition"] else "":
        for place in heard(f"inhibition {slot}", _into(model, slot, roles["S-inhibition"])):
            at_same, behind = (float(attention.sel(pair=pair)[place]) for pair in ("S2→S1", "S2→S1+1"))
            if place not in known():
                roles.setdefault("induction" if behind > at_same else "duplicate token", []).append(place)
    if roles.get("induction"):
        into_keys = heard("induction k", _into(model, "k", roles["induction"]))
        roles["previous token"] = [place for place in into_keys if place not in known()]
    shares = torch.from_numpy(np.stack(list(told.values())))
    axes = {"into": list(told), "layer": range(n_layers), "head": range(n_heads)}
    return roles, labelled(shares, axes, "share lost", {"method": "path patching", "model": model.fingerprint()})


def _into(model: HookedGPT, slot: str, some: Sequence[Head]) -> list[Site]:
    """What these heads read there."""
    shared = 1 if slot == "q" else model.cfg.n_heads // model.cfg.n_key_value_heads
    return [Site(slot, layer, head=head) for layer, head in sorted({(at, each // shared) for at, each in some})]


def _patched(
    model: HookedGPT, names: TwoNames, metric: Metric, folder: Path | None, progress: bool
) -> dict[str, DataArray]:
    """How much of the answer the stream brings along, [layer place], and each head, [layer head]."""
    scaled = metric.between(model, names.flipped, names.tokens, attention_mask=names.mask)
    n_layers = model.cfg.n_layers
    places = [Site("resid_pre", layer, pos=names.at(place)) for layer in range(n_layers) for place in PLACES]

    def patched(site: str | list[Site], name: str) -> Result:
        file = None if folder is None else folder / f"{name}.jsonl"
        options: dict[str, Any] = {"attention_mask": names.mask, "file": file, "progress": progress}
        found = activation_patching(model, names.tokens, names.flipped, site, scaled, **options)
        return found.mean("prompt", keep_attrs=True).drop_vars("base", errors="ignore")

    stream = patched(places, "stream")
    by_place = torch.from_numpy(stream.to_numpy()).view(n_layers, len(PLACES))
    axes = {"layer": range(n_layers), "place": list(PLACES)}
    return {
        "stream": labelled(by_place, axes, "recovered", stream.attrs),
        "heads": patched("z", "heads").rename("recovered"),
    }


def _attention(model: HookedGPT, names: TwoNames) -> Result:
    """Between the places, [pair layer head prompt]."""
    found = heads.patterns(model, names.tokens, attention_mask=names.mask)
    pairs = {f"{query}→{key}": (names.places[query], names.places[key]) for query, key in _PAIRS}
    return heads.attention_between(found, pairs)


def _away(model: HookedGPT, names: TwoNames, some: Sequence[Head], how: How) -> list[Ablate]:
    """What takes these heads away."""
    sites = [Site("z", layer, head=head) for layer, head in some]
    if how == "zero":
        return [Ablate(site) for site in sites]
    points = sorted({site.point(model).name for site in sites})
    _, cache = model.run_with_cache(names.others, attention_mask=names.mask, names_filter=points, return_type=None)
    means = {name: Ablate.from_reference(Site(name), "mean", cache[name], names.mask).value for name in points}
    return [Ablate(site, "mean", means[site.point(model).name]) for site in sites]


def _rising(repair: Result, roles: Roles, least: float) -> list[Head]:
    """Heads of no other role whose direct effect grows by so much when the movers are gone."""
    known = {_name(place) for some in roles.values() for place in some}
    grown = repair.mean("prompt")
    error = repair.std("prompt", ddof=1) / repair.sizes["prompt"] ** 0.5
    is_clear = (grown >= least) & (grown >= 3 * error)
    rising = [name for name in repair.component.values[is_clear.to_numpy()] if "H" in name and name not in known]
    places = [(int(layer), int(head)) for layer, head in (name[1:].split("H") for name in rising)]
    return sorted(places, key=lambda place: -float(grown.sel(component=_name(place))))


def _without(model: HookedGPT, roles: Roles, seed: int) -> dict[str, list[Head]]:
    """What is knocked out together: each role, movers with their backup, all, and as many others."""
    sets = {role: some for role, some in roles.items() if some}
    movers, every = roles["name mover"], [place for some in roles.values() for place in some]
    if roles["backup mover"]:
        sets["name mover and backup"] = movers + roles["backup mover"]
    others = [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads) if (i, j) not in every]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [others[i] for i in order[: len(every)]]
    sets |= {"all of these": every} | ({f"{len(drawn)} others": drawn} if drawn else {})
    return sets


def _margin(paths: DataArray, roles: Roles, *, above: bool) -> float:
    """The least that a head of a role has in any path, or the most that one of none has."""
    most = abs(paths).max("into").to_numpy()
    known = [place for role, some in roles.items() for place in some if role != "backup mover"]
    is_known = np.zeros(most.shape, dtype=bool)
    is_known[tuple(np.array(known).T)] = True
    return float(most[is_known].min() if above else most[~is_known].max(initial=0.0))


def _table(result: Dataset, roles: Roles, findings: dict[str, Any]) -> str:
    """What is printed."""
    rows = list[list[object]]()
    listed = findings.get("published", {})
    for role in [role for role in PUBLISHED if roles.get(role) or role in listed]:
        for place in roles.get(role, []):
            looks = result.attention.sel(layer=place[0], head=place[1])
            best = str(looks.pair.values[looks.to_numpy().argmax()])
            share = float(abs(result.path.sel(layer=place[0], head=place[1])).max())
            row = [role, _name(place), f"{share:.1%}", f"{best} {float(looks.max()):.2f}"]
            rows.append([*row, *(["yes" if place in PUBLISHED[role] else "no"] if listed else [])])
        missed = [_name(place) for place in PUBLISHED[role] if place not in roles.get(role, [])] if listed else []
        rows += [[role, name, "", "not found", "yes"] for name in missed]
    found = table(["role", "head", "tells", "looks most", *(["published"] if listed else [])], rows)
    lost = table(["without", "logit difference"], [[name, f"{x:.3f}"] for name, x in findings["without"].items()])
    whole, flipped = findings["logit_difference"], findings["logit_difference_flipped"]
    right, n_prompts = findings["share_right"], result.sizes["prompt"]
    least, most = findings["least_share_of_those_found"], findings["most_share_of_others"]
    said = f"IO before S in {right:.0%} of {n_prompts} prompts; {whole:.3f}, flipped {flipped:.3f}.\n"
    said += f"Each of those found tells {least:.1%} at least, each other head {most:.1%} at most (backups aside)."
    return "\n\n".join([found, lost, said])


def _figures(result: Dataset, roles: Roles) -> dict[str, Any]:
    """Each step of the study."""
    places = [place for some in roles.values() for place in some]
    labels = [f"{_name(place)} {role}" for role, some in roles.items() for place in some]
    looks = np.stack([result.attention.sel(layer=layer, head=head).to_numpy() for layer, head in places])
    axes = {"head": labels, "pair": result.pair.values.tolist()}
    attention = labelled(torch.from_numpy(looks), axes, "attention", result.attention.attrs)
    heads_only = result.repair[[("H" in name) for name in result.component.values]]
    return {
        "stream": plots.heatmap(
            result.stream.rename("recovered"), title="Which stream brings the answer into the flipped run"
        ),
        "heads": plots.heatmap(result.heads.rename("recovered"), title="Which head brings it"),
        "paths": plots.heatmap(result.path.rename("share lost"), title="Who tells whom what matters"),
        "attention": plots.heatmap(attention, title="Where they look"),
        "repair": plots.bars(
            heads_only.rename("change of the direct effect"), top=12, title="Direct effects when the movers are gone"
        ),
        "without": plots.bars(result.logit_difference.rename("logit difference"), title="What is left without them"),
    }


def _places(chosen: np.ndarray) -> list[Head]:
    return [(int(layer), int(head)) for layer, head in np.argwhere(chosen)]


def _is_gpt2_small(model: HookedGPT) -> bool:
    cfg = model.cfg
    return (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_vocab) == (12, 12, 768, 50257)


def _name(place: Head) -> str:
    return f"L{place[0]}H{place[1]}"


if __name__ == "__main__":
    start(main, __doc__)
