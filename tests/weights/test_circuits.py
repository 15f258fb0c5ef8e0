"""OV and QK circuits are the products that loops write out, and they say what the model does."""

import pytest
import torch

from interp import HookedGPT
from interp.model.rotary import rotations
from interp.weights import effective_embedding, ov_circuit, positional_qk, qk_circuit, stream
from interp.zoo import planted
from tests.variants import EACH, SIZES, SOLU, VARIANTS, quick_of, some_tokens, variant
from tests.weights import by_hand

close = torch.testing.assert_close
DTYPES = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EACH)
def test_circuits_are_the_products_written_out(name: str, dtype: torch.dtype) -> None:
    model, tol = variant(name, dtype), DTYPES[dtype]
    on_stream, between = ov_circuit(model), ov_circuit(model, vocab=True)
    scores, of_tokens = qk_circuit(model), qk_circuit(model, vocab=True)
    cfg = model.cfg
    heads = (cfg.n_layers, cfg.n_heads)
    assert on_stream.shape == scores.shape == (*heads, cfg.d_model, cfg.d_model)
    assert between.shape == (*heads, cfg.d_vocab, cfg.d_vocab_out)
    assert of_tokens.shape == (*heads, cfg.d_vocab, cfg.d_vocab)
    assert on_stream.mdim == cfg.d_head
    for layer in range(cfg.n_layers):
        E = by_hand.embedded(model, layer)
        for head in range(cfg.n_heads):
            OV, QK = by_hand.ov(model, layer, head), by_hand.qk(model, layer, head)
            for found, expected in [
                (on_stream, OV),
                (between, E @ OV @ by_hand.to_logits(model, layer)),
                (scores, QK),
                (of_tokens, E @ QK @ E.T),
            ]:
                close(found[layer, head].AB.double(), expected, rtol=tol, atol=tol * float(expected.abs().max()))


@pytest.mark.parametrize("vocab", [False, True])
@pytest.mark.parametrize("circuit", [ov_circuit, qk_circuit])
def test_one_layer_or_head_is_taken_of_all(circuit, vocab: bool) -> None:
    model = variant("gemma2")
    every = circuit(model, vocab=vocab)
    close(circuit(model, 1, vocab=vocab).AB, every[1].AB)
    close(circuit(model, -1, -2, vocab=vocab).AB, every[1, 2].AB)
    close(circuit(model, head=3, vocab=vocab).AB, every[:, 3].AB)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "sinusoidal", "attn_only", "width_norm"])
def test_a_heads_write_is_its_ov_circuit_of_what_it_attends_to(name: str) -> None:
    """In a run: result = sum over keys of pattern (x_key / divisor) W_OV, but for biases."""
    model, tokens = variant(name, torch.float64), some_tokens()
    with torch.no_grad():
        for block in model.blocks:
            for bias in (getattr(block.ln1, "b", None), block.attn.qkv.bias):
                if bias is not None:
                    bias.zero_()
    points = ["*hook_resid_pre", "*hook_pattern", "*hook_result", "*ln1.hook_scale", "*hook_attn_scores"]
    points = [each for each in points if name != "attn_only" or "scale" not in each]
    _, cache = model.run_with_cache(tokens, names_filter=points)
    for layer in range(model.cfg.n_layers):
        x = cache["resid_pre", layer]
        x = x if name == "attn_only" else x / cache[f"blocks.{layer}.ln1.hook_scale"]
        for head in range(model.cfg.n_heads):
            moved = cache["pattern", layer][:, head] @ (x @ ov_circuit(model, layer, head).AB)
            close(cache["result", layer][:, :, head], moved)
            if not model.cfg.is_rotary and not model.cfg.use_qk_norm:
                scores = x @ qk_circuit(model, layer, head).AB @ x.mT / model.cfg.attn_scale
                seen = cache["attn_scores", layer][:, head].isfinite()
                close(cache["attn_scores", layer][:, head][seen], scores[seen])


@pytest.mark.parametrize(
    "name",
    quick_of([name for name in VARIANTS if not VARIANTS[name].get("attn_only")], "gpt2", "llama", "gptj", "gemma2"),
)
def test_the_effective_embedding_is_the_stream_after_mlp0_without_attention_and_positions(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = torch.arange(SIZES["d_vocab"])[None]

    def zero(x, hook):
        return torch.zeros_like(x)

    silent = [("blocks.0.hook_attn_out", zero)]
    if model.pos_embed is not None:
        silent.append(("hook_pos_embed", zero))
    seen = model.run_with_cache(tokens[:, : model.cfg.n_ctx], fwd_hooks=silent)[1]["resid_post", 0][0]
    found = effective_embedding(model, chunk=4)
    close(found[: model.cfg.n_ctx], seen)
    close(effective_embedding(model, torch.tensor([5, 3])), found[[5, 3]])
    layer_1 = ov_circuit(model, 1, vocab=True, effective_embedding=True)
    close(layer_1.AB, found @ ov_circuit(model, 1).AB @ by_hand.to_logits(model, 1))
    layer_0 = ov_circuit(model, 0, vocab=True, effective_embedding=True)
    close(layer_0.AB, ov_circuit(model, 0, vocab=True).AB)  # it stands before MLP0


def test_a_lasting_hook_does_not_reach_the_effective_embedding() -> None:
    model = variant("gpt2")
    expected = effective_embedding(model)
    model.add_hook("blocks.0.mlp.hook_post", lambda x, hook: x * 0)
    close(effective_embedding(model), expected)


def test_circuits_are_differentiable_and_half_precision_is_raised() -> None:
    model = variant("gpt2")
    ov_circuit(model, 1, 0, vocab=True).trace.backward()
    assert model.grad("W_V", 1) is not None
    half = qk_circuit(variant("llama", torch.bfloat16))
    assert half.dtype == torch.float32


def test_planted_positions_say_that_a_head_looks_one_back() -> None:
    model = planted.induction(n_ctx=12, norm="LN").model
    scores = positional_qk(model, 0, 0).transpose("query_pos", "key_pos")
    assert (scores.argmax("key_pos")[1:] == scores["query_pos"][1:] - 1).all()
    assert not positional_qk(model, 1, 0).any()


@pytest.mark.parametrize("name", ["gpt2", "sinusoidal", "encoder", "width_norm"])
def test_scores_between_positions_are_the_qk_circuit_between_them(name: str) -> None:
    model = variant(name, torch.float64)
    places = torch.arange(model.cfg.n_ctx)
    pos = model.pos_embed(places[None], torch.float64)[0].detach() @ by_hand.on_the_way(model, 0, 1)
    expected = pos @ by_hand.qk(model, 1, 2) @ pos.T / model.cfg.attn_scale
    close(torch.tensor(positional_qk(model, 1, 2).values), expected)


def test_positions_beside_the_stream_pass_no_norm() -> None:
    """Tokens that embed alike, in the middle of a norm: then a head's scores are those between positions."""
    model = variant("gpt2", torch.float64, **SOLU, bias_qkv=False, bias_norm=False)
    still = [("blocks.1.hook_resid_pre", lambda x, hook: torch.ones_like(x))]
    scores = model.run_with_cache(some_tokens(), fwd_hooks=still)[1]["attn_scores", 1][0, 2]
    expected = torch.tensor(positional_qk(model, 1, 2).values[:7, :7])
    close(scores, expected.masked_fill(~torch.ones(7, 7).bool().tril(), -torch.inf))


@pytest.mark.parametrize("name", ["llama", "gptj", "neox", "qwen3", "olmo2", "gemma2", "sandwich"])
def test_rotary_scores_by_distance_are_those_of_the_model(name: str) -> None:
    """Every position has the same query and key: then the model's scores depend on the distance alone."""
    model = variant(name, torch.float64, **({"attn_scores_soft_cap": None} if name == "gemma2" else {}))
    layer, head, n = 1, 2, 7
    kv_head = head // (model.cfg.n_heads // model.cfg.n_key_value_heads)
    tokens = some_tokens(1, n)
    same = [(f"blocks.{layer}.hook_resid_pre", lambda x, hook: x[:, :1].expand_as(x).clone())]
    _, cache = model.run_with_cache(tokens, fwd_hooks=same)
    q, k = cache["q", layer][0, 0, head], cache["k", layer][0, 0, kv_head]
    if model.cfg.use_qk_norm:
        attn = model.blocks[layer].attn
        q, k = attn.q_norm(q[None, None, None])[0, 0, 0], attn.k_norm(k[None, None, None])[0, 0, 0]
    found = positional_qk(model, layer, head, query=q.detach(), key=k.detach())
    scores = cache["attn_scores", layer][0, head]
    for query in range(n):
        for key in range(query + 1):
            if scores[query, key].isfinite():
                close(float(found.sel(distance=query - key)), float(scores[query, key].detach()))


def test_rotary_scores_of_the_mean_query_and_key() -> None:
    model = variant("llama", torch.float64)
    block = model.blocks[1]
    x = block.ln1.unheard(model.W_E.detach())
    q, k = (x @ block.attn.W_Q[3]).mean(0).detach(), (x @ block.attn.W_K[1]).mean(0).detach()
    close(
        torch.tensor(positional_qk(model, 1, 3).values), torch.tensor(positional_qk(model, 1, 3, query=q, key=k).values)
    )
    cos, sin = rotations(model.cfg, torch.tensor([[4]]), torch.float64)[False]
    turned = block.attn.turn(q[None, None, None], cos, sin)[0, 0, 0]
    close(float(positional_qk(model, 1, 3, query=q)[4]), float(turned @ k / model.cfg.attn_scale))


def test_slopes_are_what_distance_takes_off() -> None:
    found = positional_qk(variant("relu2"), 0, 2)
    close(torch.tensor(found.values), -torch.arange(len(found)).double() / 4)


def test_what_cannot_be_asked_is_refused() -> None:
    model, rotary = variant("gpt2"), variant("llama")
    for wrong, message in [
        (lambda: ov_circuit(model, 2), r"layer=2; the model has 2: -2 to 1"),
        (lambda: qk_circuit(model, 0, -4), r"head=-4; the model has 3"),
        (lambda: ov_circuit(model, effective_embedding=True), "vocab=True"),
        (lambda: effective_embedding(variant("attn_only")), "attn_only=True"),
        (lambda: positional_qk(variant("attn_only"), 0, 0), "positional_embedding_type=None"),
        (lambda: positional_qk(model, 0, 0, key=torch.ones(5)), "rotary"),
        (lambda: positional_qk(rotary, 0, 0, key=torch.ones(5)), r"key has shape \[5\]"),
        (lambda: positional_qk(rotary, 0, 4), "head=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_read_off_and_carried_leave_other_models_alone() -> None:
    model: HookedGPT = variant("attn_only")
    rows = torch.randn(3, 14)
    assert stream.read_off(model, rows, 0) is rows
