"""Directions between texts."""

import pytest
import torch

from interp import HookedGPT, lens
from tests.variants import some_tokens, variant


@torch.no_grad()
def test_the_direction_is_the_difference_of_two_means() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    found = lens.mean_difference(model, tokens[:2], tokens[2:], layer=1)
    stream = cache["resid_post", 1]
    torch.testing.assert_close(found, stream[:2].mean((0, 1)) - stream[2:].mean((0, 1)))
    last = lens.mean_difference(model, tokens[:2], tokens[2:], layer=0, pos=-1)
    torch.testing.assert_close(last, cache["resid_post", 0][:2, -1].mean(0) - cache["resid_post", 0][2, -1])
    with pytest.raises(ValueError, match="layer=2; there are 2"):
        lens.mean_difference(model, tokens, tokens, layer=2)


@torch.no_grad()
def test_padding_does_not_count() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    texts = ["import os", "def area(width, height):\n    return"]
    found = lens.mean_difference(model, texts, "x", layer=1)
    each = [model.run_with_cache(text)[1]["resid_post", 1][0] for text in (*texts, "x")]
    torch.testing.assert_close(found, torch.cat(each[:2]).mean(0) - each[2].mean(0), rtol=1e-4, atol=1e-4)


def test_random_directions_are_as_long_and_drawn_anew() -> None:
    like = torch.arange(40.0)
    found = lens.random_directions(like, 3, seed=2)
    torch.testing.assert_close(found.norm(dim=-1), like.norm().expand(3))
    cosines = torch.nn.functional.normalize(torch.cat([found, like[None]]), dim=-1)
    assert float((cosines @ cosines.T - torch.eye(4)).abs().max()) < 0.6
    assert torch.equal(lens.random_directions(like, 3, seed=2), found)
    assert not torch.equal(lens.random_directions(like, 3, seed=3), found)
