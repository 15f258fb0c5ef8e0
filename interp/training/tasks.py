"""Tasks to learn: random tokens that repeat, sums modulo a number."""

from collections.abc import Callable

import torch

from interp.training.data import IGNORED, Batch


def repeated_tokens(
    d_vocab: int,
    n_ctx: int,
    periods: tuple[int, int],
    *,
    bos: int | None = None,
    first_copy: bool = True,
    among: tuple[int, int] | None = None,
) -> Callable[[torch.Generator, int], Batch]:
    """A task: random tokens, repeated with a period drawn for each row; within a period none occurs twice.

    Whoever predicts the second copy has looked for the first. `first_copy=False` asks for the later copies alone.
    With `among`, each row is made of the first n tokens of the vocabulary, the logarithm of n uniform in that range.
    """
    shortest, longest = periods
    n_tokens = d_vocab - (bos is not None and bos < d_vocab)
    fewest, most = among or (d_vocab, d_vocab)
    if not 1 <= shortest <= longest <= n_tokens:
        raise ValueError(f"periods={periods}; 1 <= shortest <= longest <= {n_tokens} tokens")
    if not longest < fewest <= most <= d_vocab and among is not None:
        raise ValueError(f"among={among}; more tokens than the longest period, {longest}, and at most {d_vocab}")

    def draw(generator: torch.Generator, n_rows: int) -> Batch:
        period = torch.randint(shortest, longest + 1, (n_rows, 1), generator=generator)
        chance = torch.rand(n_rows, d_vocab, generator=generator)
        if bos is not None and bos < d_vocab:
            chance[:, bos] = -1
        if among is not None:
            n_known = fewest * (most / fewest) ** torch.rand(n_rows, 1, generator=generator)
            chance[torch.arange(d_vocab) >= n_known.round()] = -1
        once = chance.topk(longest, dim=1).indices
        rows = once.gather(1, torch.arange(n_ctx + (bos is None)) % period)
        if bos is not None:
            rows = torch.cat((torch.full((n_rows, 1), bos), rows), 1)
        targets = rows[:, 1:].clone()
        if not first_copy:
            targets[torch.arange(n_ctx) + (bos is None) < period] = IGNORED
        return Batch(rows[:, :-1].contiguous(), targets)

    return draw


def modular_addition(p: int, share: float, seed: int = 0) -> tuple[Batch, Batch]:
    """The pairs a, b of a + b (mod p), read as `a b =`: a random share of them, and the others."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    tokens = torch.stack((a.flatten(), b.flatten(), torch.full((p * p,), p)), 1)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -1] = (tokens[:, 0] + tokens[:, 1]) % p
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    n_train = int(share * p * p)
    return tuple(Batch(tokens[rows], targets[rows]) for rows in (order[:n_train], order[n_train:]))  # type: ignore[return-value]
