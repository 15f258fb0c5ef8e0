"""Small scans for triggers: by hand, in a process that is killed in the middle, and in one of several."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from interp import HookedGPT
from interp.memories import Triggers, scan, triggers
from tests.variants import variant

D_VOCAB, N_CTX = 500, 11
Entry = tuple[float, int, int]  # value, place, document


def corpus(n_documents: int = 30) -> list[torch.Tensor]:
    """Documents of 1 to 25 tokens, no token twice: no two coefficients are equal but for rounding."""
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 26, (n_documents,), generator=draw).tolist()
    return list(torch.randperm(D_VOCAB, generator=draw)[: sum(lengths)].split(lengths))


def model_of(name: str = "gpt2") -> HookedGPT:
    """A model that reads it."""
    return variant(name, d_vocab=D_VOCAB)


def scanned(model: HookedGPT | None = None, **choices: Any) -> Triggers:
    """Triggers of that corpus."""
    some: dict[str, Any] = {"top": 6, "n_ctx": N_CTX, "batch_size": 3, "reservoir": 40, "progress": False} | choices
    return triggers(model_of() if model is None else model, corpus(), **some)


def largest(
    values: torch.Tensor, place: list[int], document: list[int], context: list[Any], k: int, by_document: bool
) -> list[Entry]:
    """The k largest of one key, by the words of the definition."""
    every = sorted(
        (-value, at, i) for i, (value, at) in enumerate(zip(values.tolist(), place, strict=True)) if value > 0
    )
    found, documents, contexts = [], set(), set()
    for value, at, i in every:  # of each document its largest, the first of equals
        if by_document and document[i] in documents:
            continue
        documents.add(document[i])
        if by_document and context[i] in contexts:
            continue
        contexts.add(context[i])
        found.append((-value, at, document[i]))
    return found[:k]


def killed(folder: str, n_batches: int) -> None:
    """Dies when so many batches are read, in the next one."""
    module = sys.modules["interp.memories.triggers"]
    module._EVERY = 0.0  # type: ignore[attr-defined]
    settle, n_read = scan.Largest.settle, 0

    def counted(self: scan.Largest, batch: scan.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal n_read
        n_read += 1
        if n_read > n_batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return settle(self, batch)

    scan.Largest.settle = counted  # type: ignore[method-assign]
    scanned(folder=folder)


def one_of_several(rank: int, n: int, meeting: str, failing: int) -> None:
    """Leaves what it finds beside the file by which the processes meet."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n)
    found: dict[str, Any] = {}
    if rank == failing:
        scan.Largest.settle = _fault  # type: ignore[method-assign]
    for per in ("document", "position"):
        try:
            each = scanned(per=per, folder=f"{meeting}.{per}")
            found[per] = each.about, each.tensors
        except (RuntimeError, ValueError) as error:
            found[per] = str(error)
    torch.save(found, f"{meeting}.{rank}")
    dist.destroy_process_group()


def _fault(*_: object) -> None:
    raise ValueError("a fault of one")


def same(one: Triggers, other: Triggers) -> None:
    """Assert that two scans found the same."""
    assert one.about == other.about
    assert one.tensors.keys() == other.tensors.keys()
    for name, x in one.tensors.items():
        if x.is_floating_point():  # passes of other shapes round otherwise
            torch.testing.assert_close(x, other.tensors[name], rtol=1e-5, atol=1e-5 if name == "value" else 1e-3)
        else:
            assert torch.equal(x, other.tensors[name]), name


if __name__ == "__main__":
    killed(sys.argv[1], int(sys.argv[2]))
    assert Path(sys.argv[1]).is_dir()
