"""What a call returns, where it starts and stops, and what memory it takes."""

import pytest
import torch
import torch.nn.functional as F

from interp import GPTConfig, HookedGPT, KVCache
from tests.peak_memory import peak_bytes, self_check
from tests.variants import EACH, some_tokens, variant

TOKENS = some_tokens()


@pytest.mark.parametrize("name", EACH)
def test_a_pass_can_stop_at_a_layer_and_go_on_from_there(name: str) -> None:
    model = variant(name)
    logits, cache = model.run_with_cache(TOKENS)
    for layer in range(3):
        resid = model(TOKENS, stop_at_layer=layer)
        torch.testing.assert_close(resid, cache.accumulated_resid(layer)[-1])
        torch.testing.assert_close(model(resid, start_at_layer=layer), logits)
        for further in range(layer, 3):
            onward = model(resid, start_at_layer=layer, stop_at_layer=further)
            torch.testing.assert_close(onward, cache.accumulated_resid(further)[-1])
    torch.testing.assert_close(model(TOKENS, stop_at_layer=-1), cache["resid_pre", 1])
    _, part = model.run_with_cache(TOKENS, stop_at_layer=1)
    assert not any(n.startswith(("blocks.1", "ln_final", "unembed")) for n in part)
    _, part = model.run_with_cache(cache["resid_pre", 1], start_at_layer=1)
    each_reads = {"hook_pos_embed"} if model.cfg.is_shortformer else set()
    assert {n for n in part if n.startswith(("blocks.0", "hook_"))} == each_reads


def test_the_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model = variant("gpt2")
    logits, loss = model(TOKENS, "both")
    by_hand = torch.stack(
        [-logits[row, pos].log_softmax(-1)[TOKENS[row, pos + 1]] for row in range(3) for pos in range(6)]
    ).reshape(3, 6)
    torch.testing.assert_close(loss, by_hand.mean())
    torch.testing.assert_close(model(TOKENS, "loss", loss_per_token=True), by_hand)
    assert torch.equal(logits, model(TOKENS))
    assert model(TOKENS, None) is None
    seen = []
    model.run_with_hooks(TOKENS, None, fwd_hooks=[("unembed.hook_out", lambda x, hook: seen.append(x))])
    assert torch.equal(seen[0], logits)


def test_padding_does_not_count_in_the_loss() -> None:
    model = variant("gpt2")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    logits, loss = model(TOKENS, "both", attention_mask=mask)
    per_token = model(TOKENS, "loss", attention_mask=mask, loss_per_token=True)
    counted = [(0, p) for p in range(2, 6)] + [(1, p) for p in range(3)] + [(2, p) for p in range(6)]
    by_hand = {(r, p): F.cross_entropy(logits[r, p], TOKENS[r, p + 1]) for r, p in counted}
    torch.testing.assert_close(loss, torch.stack(list(by_hand.values())).mean())
    for row in range(3):
        for pos in range(6):
            assert per_token[row, pos].item() == pytest.approx(
                by_hand.get((row, pos), torch.zeros(())).item(), rel=1e-5
            )


def test_a_single_sequence_is_a_batch_of_one() -> None:
    model = variant("gpt2")
    assert torch.equal(model(TOKENS[1]), model(TOKENS[1:2]))
    assert torch.equal(model(TOKENS.to(torch.int32)), model(TOKENS))


def test_recording_one_position_of_one_activation_costs_no_memory() -> None:
    self_check()
    sizes = {"n_layers": 12, "d_model": 192, "n_heads": 4, "d_vocab": 1000, "n_ctx": 128}
    model = HookedGPT(GPTConfig(**sizes, seed=0)).eval()
    tokens = torch.randint(0, 1000, (4, 128))
    with torch.no_grad():
        plain = peak_bytes(lambda: model(tokens))
        one = peak_bytes(lambda: model.run_with_cache(tokens, names_filter="blocks.5.hook_resid_post", pos_slice=-1))
        whole = peak_bytes(lambda: model.run_with_cache(tokens))
    assert one < 1.02 * plain
    assert whole > 3 * plain, "or this could not tell the difference"
    with torch.no_grad():
        queries = peak_bytes(lambda: model.run_with_cache(tokens, names_filter="*hook_q"))
    assert queries < plain + 1.1 * 12 * 4 * 128 * 192 * 4, "a cached query does not keep keys and values alive"


@pytest.mark.parametrize("name", EACH)
def test_the_last_position_alone_gets_the_logits_that_it_gets_among_all(name: str) -> None:
    model = variant(name, torch.float64)
    tokens, mask = some_tokens(), torch.ones(3, 7, dtype=torch.bool)
    mask[1, :3] = False
    for given in (None, mask):
        with torch.no_grad():
            whole = model(tokens, attention_mask=given)
            last = model(tokens, attention_mask=given, last_only=True)
            assert last.shape == (3, 1, whole.shape[-1])
            torch.testing.assert_close(last, whole[:, -1:], rtol=1e-10, atol=1e-12)
            if model.cfg.attention_dir == "causal":
                past = KVCache()
                model(tokens[:, :4], attention_mask=None if given is None else mask[:, :4], past_kv_cache=past)
                rest = {"attention_mask": None if given is None else mask[:, 4:], "past_kv_cache": past}
                torch.testing.assert_close(model(tokens[:, 4:], last_only=True, **rest), last, rtol=1e-10, atol=1e-12)
    gradients = []
    for last_only in (False, True):
        model.zero_grad()
        model(tokens, last_only=last_only)[:, -1].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for full, cut in zip(*gradients, strict=True):
        torch.testing.assert_close(cut, full, rtol=1e-8, atol=1e-10)


def test_whoever_listens_to_the_last_block_gets_every_position() -> None:
    model, tokens, seen = variant("gpt2"), some_tokens(), []
    with model.hooks([("blocks.1.mlp.hook_post", lambda post, hook: seen.append(post.shape[1]))]):
        assert model(tokens, last_only=True).shape[1] == 7
    assert seen == [7]
    with model.hooks([("blocks.0.mlp.hook_post", lambda post, hook: seen.append(post.shape[1]))]):
        assert model(tokens, last_only=True).shape[1] == 1
    assert seen == [7, 7]
