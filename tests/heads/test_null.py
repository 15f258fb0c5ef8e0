"""What scores are measured by: heads whose weights are shuffled, on the same streams."""

import pytest
import torch

from interp.heads import null as nulls
from interp.heads.weights import LayerHeads
from tests.variants import some_tokens, variant


def test_the_null_has_at_least_500_heads_in_20_orders() -> None:
    model = variant("gpt2")
    null = nulls.Null(model, 0)
    assert len(null.shuffles) >= 20
    assert len(null.shuffles) * model.cfg.n_heads >= 500
    assert {layer for layer, _ in null.shuffles} == {0, 1}
    assert len({seed for _, seed in null.shuffles}) == len(null.shuffles)


@pytest.mark.parametrize("name", ["gpt2", "llama", "width_norm", "output_ln"])
def test_shuffled_heads_keep_their_numbers_and_unshuffled_ones_their_patterns(name: str) -> None:
    model, tokens = variant(name), some_tokens()
    _, cache = model.run_with_cache(tokens)
    own = LayerHeads.of(model, 1)
    where = torch.arange(tokens.shape[1])[None]
    pattern, lengths = own.look(cache["resid_pre", 1], model.pass_over(where, None))
    torch.testing.assert_close(pattern, cache["pattern", 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lengths, own.lengths(cache["v", 1]), rtol=1e-4, atol=1e-5)
    other = own.shuffled(7)
    shapes = [(part, model.cfg.d_head) for part in ("qkv",)]
    for part, d_head in shapes:
        for mine, theirs in zip(
            getattr(own, part).split(d_head), getattr(other, part).split(d_head), strict=True
        ):  # head by head
            assert not torch.equal(mine, theirs)
            assert torch.equal(mine.flatten().sort().values, theirs.flatten().sort().values)
    by_head = [each.out.unflatten(1, (model.cfg.n_heads, -1)) for each in (own, other)]
    for head in range(model.cfg.n_heads):
        mine, theirs = (each[:, head].flatten() for each in by_head)
        assert torch.equal(mine.sort().values, theirs.sort().values)
        assert not torch.equal(mine, theirs)
