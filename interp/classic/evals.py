"""Small evaluations: repeats of random tokens, and the indirect object."""

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from interp.classic.datasets import load_dataset, tokenize_and_concatenate
from interp.classic.utils import lm_cross_entropy_loss

_PROSE = (
    "For a long time people looked at the night sky with nothing but their eyes. Then somebody put two pieces of glass "
    "into a tube, and the moon had mountains. What had been a point of light turned out to be a world with moons of "
    "its own, and those who had drawn the old maps had to begin again."
)
_TEMPLATES = (
    "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
    "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
)
_NOUNS = {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


def sanity_check(model: Any) -> Tensor:
    """The loss on a paragraph of prose: a model that has learned to write has less than 5, one that has not, over 7."""
    return model(_PROSE, return_type="loss")


def _loader(tokenizer: Any, batch_size: int, *name: str, column_name: str = "text") -> DataLoader[Any]:
    texts = load_dataset(*name, split="train")
    rows = tokenize_and_concatenate(texts, tokenizer, column_name=column_name)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True)


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Rows of 1024 tokens of Wikitext-2."""
    return _loader(tokenizer, batch_size, "wikitext", "wikitext-2-v1")


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Rows of 1024 tokens of pages that many linked to: much like GPT-2's texts."""
    return _loader(tokenizer, batch_size, "stas/openwebtext-10k")


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Rows of 1024 tokens of the Pile."""
    return _loader(tokenizer, batch_size, "NeelNanda/pile-10k")


def make_code_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader[Any]:
    """Rows of 1024 tokens of Python."""
    return _loader(tokenizer, batch_size, "codeparrot/codeparrot-valid-v2-near-dedup", column_name="content")


DATASET_NAMES = ["wiki", "owt", "pile", "code"]
DATASET_LOADERS = [make_wiki_data_loader, make_owt_data_loader, make_pile_data_loader, make_code_data_loader]


@torch.no_grad()
def evaluate_on_dataset(
    model: Any, data_loader: Iterable[dict[str, Tensor]], truncate: int = 100, device: str | None = None
) -> float:
    """The mean loss of the first `truncate` batches."""
    batches = tqdm(islice(data_loader, truncate), desc="evaluation", delay=1.0)
    losses = [model(batch["tokens"].to(device or model.device), return_type="loss").item() for batch in batches]
    if not losses:
        raise ValueError("there is no batch to evaluate on")
    return sum(losses) / len(losses)


def evaluate(model: Any, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None) -> dict[str, float]:
    """The loss on each of four data sets of the hub."""
    found = {}
    for name, loader in zip(DATASET_NAMES, DATASET_LOADERS, strict=True):
        rows = loader(tokenizer or model.tokenizer, batch_size)
        found[f"{name}_loss"] = evaluate_on_dataset(model, rows, truncate)
        print(f"{name}: {found[f'{name}_loss']}")
    return found


@torch.no_grad()
def induction_loss(
    model: Any,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: str | None = None,  # noqa: ARG001
) -> Float[Tensor, ""]:
    """The loss on the second of two copies of random tokens."""
    first, last = min(100, model.cfg.d_vocab // 2), min(20_000, model.cfg.d_vocab)
    once = torch.randint(first, last, (batch_size, subseq_len), device=model.device)
    tokens = once.repeat(1, 2)
    if model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
        tokens[:, 0] = (tokenizer or model.tokenizer).bos_token_id
    loss = lm_cross_entropy_loss(model(tokens), tokens, per_token=True)
    return loss[:, subseq_len + 1 :].mean()


class IOIDataset:
    """Sentences with an indirect object: each has its tokens, and those of the right name and of the other.

    With `symmetric`, every pair of names comes in both orders.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        self.tokenizer, self.prepend_bos = tokenizer, prepend_bos
        self.templates, self.nouns = list(templates or self.get_default_templates()), nouns or self.get_default_nouns()
        self.names = list(names or self.get_default_names())
        if len(set(self.names)) < 2:
            raise ValueError(f"names={self.names}; two different ones at least")
        self._draw: Any = random if seed is None else random.Random(seed)  # unseeded, from the state of all
        self.samples: list[dict[str, str]] = []
        while len(self.samples) < num_samples:
            self.samples += self.get_sample(symmetric)
        del self.samples[num_samples:]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict[str, Int[Tensor, " pos"]]:
        sample = self.samples[i]
        start = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        ids = {"prompt": start + self.tokenizer.encode(sample["text"])}
        ids |= {name: self.tokenizer.encode(sample[name]) for name in ("IO", "S")}
        return {name: torch.tensor(each) for name, each in ids.items()}

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """A sentence drawn at random, or the two with its names in both orders."""
        text = self._draw.choice(self.templates)
        for kind, words in self.nouns.items():
            text = text.replace(f"[{kind}]", self._draw.choice(words))
        a, b = self._draw.sample(self.names, 2)
        orders = [(a, b), (b, a)] if symmetric else [(a, b)]
        return [
            {"text": text.replace("[A]", right).replace("[B]", other), "IO": f" {right}", "S": f" {other}"}
            for right, other in orders
        ]

    @staticmethod
    def get_default_names() -> list[str]:
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        return list(_TEMPLATES)

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        return {kind: list(words) for kind, words in _NOUNS.items()}


@torch.no_grad()
def ioi_eval(
    model: Any,
    dataset: Any = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
) -> dict[str, float]:
    """By how much the right name's logit exceeds the other's where they part, and how often it does."""
    tokenizer = tokenizer or model.tokenizer
    dataset = IOIDataset(tokenizer, num_samples=num_samples, symmetric=symmetric) if dataset is None else dataset
    found: list[float] = []
    for start in tqdm(range(0, len(dataset), batch_size), desc="ioi", delay=1.0):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        prompts = torch.nn.utils.rnn.pad_sequence([each["prompt"] for each in samples], batch_first=True)
        logits = model(prompts.to(model.device))
        for row, sample in zip(logits, samples, strict=True):
            shortest = min(len(sample["IO"]), len(sample["S"]))
            right, other = sample["IO"][:shortest], sample["S"][:shortest]
            if not (right != other).any():
                raise ValueError("one name is the beginning of the other, in tokens: no logit tells them apart")
            at = int((right != other).long().argmax())
            here = row[len(sample["prompt"]) - len(sample["IO"]) + at - 1]
            found.append((here[right[at]] - here[other[at]]).item())
    return {"Logit Difference": sum(found) / len(found), "Accuracy": sum(each > 0 for each in found) / len(found)}
