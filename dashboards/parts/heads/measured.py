"""What the page on heads shows: each number is computed by `interp`, and kept."""

from collections.abc import Hashable
from time import perf_counter

import numpy as np
import streamlit as st
from torch import Tensor
from xarray import DataArray, Dataset

from dashboards.parts.state import Chosen, cached, kept, run
from interp import ActivationCache, HookedGPT, heads, metrics, patching, plots
from interp.heads import EdgeXrays, HeadCard, Patterns
from interp.passages import rows_like
from interp.plots import Mosaic
from interp.plots.theme import Theme, seen

AT_ONCE = 1.5  # seconds that a measurement may take without being asked for

HERE = {
    "focus here": "1 − entropy / the entropy of looking everywhere alike, a mean over this prompt's queries",
    "first here": "attention to the first token, a mean over this prompt's queries",
    "previous here": "attention to the token before, a mean over this prompt's queries",
    "itself here": "attention to the token itself, a mean over this prompt's queries",
}
EFFECTS = {
    "direct effect": "direct",
    "zeroed": "zero",
    "its mean instead": "mean",
    "as in another text": "resample",
}
OTHERS = 8  # rows of other text
WRITTEN = 8  # tokens told of an edge


def all_patterns() -> Patterns:
    """The patterns of all heads on what is on show, kept as queries and keys."""
    return cached(patterns_of)


def picture_of(now: Chosen, relative: bool) -> Mosaic:
    """The picture of all patterns."""
    given = (all_patterns(), now.labels, relative, now.theme)
    return kept(now.fingerprint, now.tokens, mosaic_of, given, (relative, now.theme))


def patterns_of(model: HookedGPT, tokens: Tensor) -> Patterns:
    """For `cached`."""
    return heads.patterns(model, tokens)


def mosaic_of(found: Patterns, labels: list[str], relative: bool, theme: Theme) -> Mosaic:
    """For `kept`."""
    return plots.mosaic(found, tokens=labels, relative=relative, theme=theme)


def statistics_of(model: HookedGPT, tokens: Tensor) -> Dataset:
    """For `cached`."""
    return heads.corpus_statistics(model, tokens, progress=False)


def statistic(now: Chosen, name: str) -> DataArray:
    """What `HERE` says of this name, of all heads, [layer head]."""
    found = kept(now.fingerprint, now.tokens, statistics_of, (now.model, now.tokens), ())
    return 1 - found.relative_entropy if name == "focus here" else found[name.removesuffix(" here")]


def statistic_code(name: str, found: str = "found") -> str:
    """The same in the code of a figure, from the statistics `found`."""
    return f"1 - {found}.relative_entropy" if name == "focus here" else f"{found}.{name.removesuffix(' here')}"


def direct_of(model: HookedGPT, cache: ActivationCache, q: int, target: int, foil: int) -> DataArray:
    """For `kept`."""
    return heads.direct_effects(model, cache, target, foil, pos=q).isel(prompt=0, drop=True)


def direct(now: Chosen) -> DataArray:
    """What each head adds to the target less the foil, [layer head]."""
    given, what = run(now, *heads.effect_names(now.model)), (now.q, now.target, now.foil)
    return kept(now.fingerprint, now.tokens, direct_of, (now.model, given, *what), what)


def ablated_of(model: HookedGPT, tokens: Tensor, q: int, target: int, foil: int, kind: str) -> DataArray:
    """For `cached`."""
    metric = metrics.logit_diff(model, target, foil, pos=q)
    others = rows_like(model, tokens, OTHERS) if kind == "resample" else None
    prompts = tokens if others is None else tokens.expand(OTHERS, -1)
    found = patching.ablation(model, prompts, "z", metric, kind=kind, reference=others, progress=False)  # type: ignore[arg-type]
    effect = (found - found.base).mean("prompt").drop_vars("base", errors="ignore")
    return effect.assign_attrs(found.attrs | {"base": float(found.base[0])})


def xrays_of(found: Patterns) -> EdgeXrays:
    """For `kept`."""
    return EdgeXrays.of(found)


def xray(now: Chosen, layer: int, head: int, key: int) -> Dataset:
    """The edge from the position that is read to a key."""
    xrays = kept(now.fingerprint, now.tokens, xrays_of, (all_patterns(),), ())
    return xrays(layer, head, now.q, key, now.target, now.foil)


def writes(now: Chosen, layer: int, head: int, key: int) -> Dataset:
    """What that edge's head writes for the token at the key."""
    xrays = kept(now.fingerprint, now.tokens, xrays_of, (all_patterns(),), ())
    what = (layer, head, now.q, key, min(WRITTEN, now.model.cfg.d_vocab_out))
    return kept(now.fingerprint, now.tokens, writes_of, (xrays, *what), what)


def writes_of(xrays: EdgeXrays, *what: int) -> Dataset:
    """For `kept`."""
    return xrays.writes(*what)


def seconds_of(model: HookedGPT, tokens: Tensor) -> float:
    """For `cached`: how long a pass takes."""
    start = perf_counter()
    model(tokens, last_only=True)
    return perf_counter() - start


@st.cache_resource(max_entries=4, show_spinner=False)
def _detected(fingerprint: str, _model: HookedGPT) -> Dataset:  # noqa: ARG001  it is what the result is known by
    return heads.detect(_model, progress=False)


@st.cache_resource(max_entries=32, show_spinner="Reading text with this head")
def _card(fingerprint: str, layer: int, head: int, _model: HookedGPT, _found: Dataset) -> HeadCard:  # noqa: ARG001
    return heads.head_card(_model, layer, head, found=_found, progress=False)


def measure(now: Chosen) -> None:
    """If it was asked for what heads are, find it out now, and say so where nothing else stands."""
    if asked("roles", now.fingerprint):
        with st.spinner("Holding every head against heads with shuffled weights"):
            detected(now)


def detected(now: Chosen) -> Dataset | None:
    """What heads are, if that was asked for in this session."""
    return _detected(now.fingerprint, now.model) if asked("roles", now.fingerprint) else None


def card_of(now: Chosen, layer: int, head: int) -> HeadCard:
    """A head's card."""
    return _card(now.fingerprint, layer, head, now.model, _detected(now.fingerprint, now.model))


def role_of(now: Chosen, layer: int, head: int) -> str:
    """What a head is."""
    found = detected(now)
    if found is None:
        return "role not measured yet"
    own = found.sel(layer=layer, head=head)
    return str(own.role.item()) + (", rests on the first token" if bool(own.rests) else "")


def asked(*what: Hashable) -> bool:
    """Whether this session asked for something that takes a while."""
    return what in st.session_state.get("_heads_asked", set())


def ask(*what: Hashable) -> None:
    """From now on it is shown."""
    st.session_state.setdefault("_heads_asked", set()).add(what)


def offer_to_detect(now: Chosen, where: str) -> None:
    """A button that has the roles measured."""
    st.button(
        "Measure what heads are",
        key=f"detect_{where}",
        on_click=ask,
        args=("roles", now.fingerprint),
        icon=":material/play_arrow:",
        help="Scores on random tokens that repeat and on text, beside some 500 heads with shuffled weights: seconds on "
        "a small model, minutes on a large one. Kept for all pages.",
    )


def score_of(now: Chosen, name: str) -> DataArray | None:
    """A score of all heads, [layer head], if it is known."""
    if name in HERE:
        return statistic(now, name)
    found = detected(now)
    return None if found is None else found.value.sel(score=name)


def effect_if_known(now: Chosen, kind: str) -> DataArray | None:
    """An effect of all heads, [layer head], if it takes no time, or was asked for."""
    if kind == "direct":
        return direct(now)
    if seconds_at_most(now, kind) > AT_ONCE and not asked("ablation", now.fingerprint, kind):
        return None
    with st.spinner("Taking heads away"):
        return cached(ablated_of, now.q, now.target, now.foil, kind)


def effect_or_offer(now: Chosen, kind: str, where: str) -> DataArray | None:
    """The same; else a button, with the time that it takes."""
    found = effect_if_known(now, kind)
    if found is None:
        n, times = now.model.cfg.n_layers * now.model.cfg.n_heads, OTHERS if kind == "resample" else "one"
        passes = f"{times} pass{'' if times == 'one' else 'es'}"
        st.info(f"{n} heads × {passes}: {seconds_at_most(now, kind):.0f} s at most.", icon=":material/timer:")
        what = ("ablation", now.fingerprint, kind)
        st.button("Measure", key=f"ablate_{where}_{kind}", on_click=ask, args=what, icon=":material/play_arrow:")
    return found


def seconds_at_most(now: Chosen, kind: str) -> float:
    """How long it takes to take every head away, by the time of a pass."""
    times = OTHERS if kind == "resample" else 1
    return times * now.model.cfg.n_layers * now.model.cfg.n_heads * cached(seconds_of)


def quoted(now: Chosen, token: int) -> str:
    """A token as it can be shown, where nothing is taken for markup."""
    text = str(token) if now.model.tokenizer is None else now.model.to_single_str_token(token)
    return f"“{seen(text)}”"


def strongest_head(now: Chosen) -> tuple[int, int]:
    """The head that adds most to the target less the foil, or most against it."""
    effect = np.abs(direct(now).to_numpy())
    layer, head = np.unravel_index(int(np.nan_to_num(effect).argmax()), effect.shape)
    return int(layer), int(head)
