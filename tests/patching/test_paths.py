from typing import Literal

import pytest
import torch

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.patching import path_patching
from interp.patching.memory import Peak
from interp.results import Result
from tests.patching.oracle import one_by_one
from tests.patching.test_activation import CAUSAL, padded
from tests.variants import some_tokens, variant

pytestmark = pytest.mark.slow  # beside the quick tests of the same functions on planted models


def literally(
    model: HookedGPT,
    own: torch.Tensor,
    other: torch.Tensor,
    sender: tuple[str, int | None],
    receivers: list[tuple[str, int | None]],
    metric: metrics.AnyMetric,
    mlps: str,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Wang et al.'s three passes, with plain hooks."""
    _, cache = model.run_with_cache(own, attention_mask=mask)
    _, source = model.run_with_cache(other, attention_mask=mask)
    name, head = sender
    held = [n for n in model.hook_dict if n.endswith("hook_z") or (mlps == "frozen" and n.endswith("hook_mlp_out"))]
    layer = int(name.split(".")[1])

    def hold(x: torch.Tensor, hook) -> torch.Tensor:
        if hook.name.endswith("hook_mlp_out") and hook.layer() < layer:
            return x
        x = cache[hook.name].clone()
        if hook.name == name:
            x = put_head(x, source[name], head)
        return x

    heard: dict[str, torch.Tensor] = {}
    hooks = [(n, hold) for n in {*held, name}]
    with model.hooks(hooks):
        _, frozen = model.run_with_cache(own, attention_mask=mask, names_filter=[n for n, _ in receivers])
    heard = {n: frozen[n] for n, _ in receivers}
    changes = [(n, lambda x, n=n, h=h: put_head(x.clone(), heard[n], h)) for n, h in receivers]
    return one_by_one(model, own, metric, [changes], mask)[0]


def put_head(x: torch.Tensor, source: torch.Tensor, head: int | None) -> torch.Tensor:
    if head is None:
        return source.clone()
    x[:, :, head] = source[:, :, head]
    return x


@pytest.mark.parametrize(("side", "mlps"), [(None, "recomputed"), ("left", "frozen")])
@pytest.mark.parametrize("name", CAUSAL)
def test_three_passes_written_out(name: str, side: str | None, mlps: Literal["recomputed", "frozen"]) -> None:
    model = variant(name, torch.float64)
    clean = some_tokens()
    corrupted = clean.roll(1, 0)
    mask, n_layers = padded(side, *clean.shape), model.cfg.n_layers
    metric = metrics.logit_diff(model, [1, 2, 3], [4, 5, 6])
    last = f"blocks.{n_layers - 1}."
    one_head, several = Site("q", n_layers - 1, head=1), ["blocks.1.attn.hook_k", last + "attn.hook_v"]
    receivers = [one_head, several, "logits"]
    literal = [
        [(last + "attn.hook_q", 1)],
        [(each, None) for each in several],
        [(last + "hook_resid_post", None)],
    ]
    if not model.cfg.attn_only:
        receivers.append(last + "hook_mlp_in")
        literal.append([(last + "hook_mlp_in", None)])
    found = path_patching(
        model, clean, corrupted, "heads", receivers, metric, mlps=mlps, attention_mask=mask, progress=False
    )
    assert found.dims == ("receiver", "layer", "head", "prompt")
    for layer, head in ((0, 2), (1, 0)):
        for nth, each in enumerate(literal):
            sender = (f"blocks.{layer}.attn.hook_z", head)
            wanted = literally(model, clean, corrupted, sender, each, metric, mlps, mask)
            got = torch.from_numpy(found[nth, layer, head].to_numpy())
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9, check_dtype=False)


def test_clean_into_clean_tells_nothing() -> None:
    model, tokens = variant("gpt2", torch.float64), some_tokens()
    found = path_patching(model, tokens, tokens, "heads", ["logits"], metrics.loss(), progress=False)
    torch.testing.assert_close(torch.from_numpy((found - found.base).to_numpy()).abs().max().item(), 0.0)


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
def test_mlps_and_chosen_sites_send_too(mlps: Literal["recomputed", "frozen"]) -> None:
    model = variant("gpt2", torch.float64)
    clean = some_tokens()
    corrupted, metric = clean.roll(1, 0), metrics.loss()
    receiver = "blocks.1.attn.hook_q"
    found = path_patching(model, clean, corrupted, "mlps", [receiver], metric, mlps=mlps, progress=False)
    assert found.dims == ("receiver", "layer", "prompt")
    wanted = literally(model, clean, corrupted, ("blocks.0.hook_mlp_out", None), [(receiver, None)], metric, mlps, None)
    torch.testing.assert_close(torch.from_numpy(found[0, 0].to_numpy()), wanted, check_dtype=False)
    torch.testing.assert_close(torch.from_numpy(found[0, 1].to_numpy()), torch.from_numpy(found.base.to_numpy()))
    sites = [Site("z", 0, head=2), Site("mlp_out", 0)]
    both = path_patching(model, clean, corrupted, sites, [receiver], metric, mlps=mlps, progress=False)
    assert both.dims == ("receiver", "site", "prompt")
    torch.testing.assert_close(torch.from_numpy(both[0, 1].to_numpy()), wanted, check_dtype=False)


def test_denoising_stays_in_the_corrupted_run() -> None:
    model = variant("llama", torch.float64)
    clean = some_tokens()
    corrupted, metric, receivers = clean.roll(1, 0), metrics.loss(), ["blocks.1.attn.hook_v"]
    one = path_patching(model, clean, corrupted, "heads", receivers, metric, direction="denoise", progress=False)
    other = path_patching(model, corrupted, clean, "heads", receivers, metric, direction="noise", progress=False)
    torch.testing.assert_close(torch.from_numpy(one.to_numpy()), torch.from_numpy(other.to_numpy()))


def test_what_neither_writes_nor_reads() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    with pytest.raises(ValueError, match=r"hook_pattern writes nothing to the stream; senders are"):
        path_patching(model, tokens, tokens, [Site("pattern", 0)], ["logits"], metrics.loss())
    with pytest.raises(ValueError, match=r"hook_z does not read the stream; receivers are"):
        path_patching(model, tokens, tokens, "heads", [Site("z", 1)], metrics.loss())
    with pytest.raises(ValueError, match=r"logits.*is a receiver by itself"):
        path_patching(model, tokens, tokens, "heads", [["logits", Site("q", 1)]], metrics.loss())
    with pytest.raises(KeyError, match="nearest"):
        path_patching(model, tokens, tokens, "heads", ["blocks.9.attn.hook_q"], metrics.loss())
    with pytest.raises(ValueError, match="as many"):
        path_patching(model, tokens, tokens[:, :4], "heads", ["logits"], metrics.loss())


def test_senders_go_in_parts_that_keep_within_a_budget() -> None:
    model = variant("gpt2", torch.float64, n_ctx=40)
    clean = some_tokens(4, 40)
    corrupted, metric = clean.roll(1, 0), metrics.logit_diff(model, [1, 2, 3, 4], 5)

    def found(memory: int | None = None) -> Result:
        return path_patching(
            model, clean, corrupted, "heads", ["blocks.1.attn.hook_k", "logits"], metric, memory=memory, progress=False
        )

    with Peak() as most:
        plenty = found()
    with pytest.raises(ValueError, match=r"memory=1,000 bytes is too little: one row alone needs [\d,]+") as refused:
        found(memory=1000)
    one = int(str(refused.value).rpartition(" ")[2].replace(",", ""))
    with Peak() as peak:
        little = found(memory=2 * one)
    held = most.bytes - peak.bytes
    assert held > 4 * one, "far more than that would be taken without it"
    torch.testing.assert_close(torch.from_numpy(little.values), torch.from_numpy(plenty.values))
