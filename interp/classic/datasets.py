"""Texts of the hub, and texts as rows of tokens."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from interp.classic.tokenizers import native_tokenizer
from interp.loading.files import read_json

DATASETS = {
    "openwebtext": "stas/openwebtext-10k", "owt": "stas/openwebtext-10k", "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k", "code": "NeelNanda/code-10k", "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k", "c4-code": "NeelNanda/c4-code-20k", "wiki": "NeelNanda/wiki-10k",
}  # fmt: skip
TRAINED_ON = {
    "neel": "c4_code", "GPT2LMHeadModel": "openwebtext", "GPTNeoForCausalLM": "pile", "GPTNeoXForCausalLM": "pile",
    "GPTJForCausalLM": "pile", "OPTForCausalLM": "pile",
}  # fmt: skip


def load_dataset(*name: str, **kwargs: Any) -> Any:
    """A data set of the hub, by the library `datasets`."""
    if find_spec("datasets") is None:
        raise ImportError(f"the data set {name} is read by the library datasets, which is not installed")
    return import_module("datasets").load_dataset(*name, **kwargs)


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """Some ten thousand texts of one of `DATASETS`, each as `{"text": …}`."""
    if dataset_name not in DATASETS:
        raise ValueError(f"Dataset {dataset_name} not supported; allowed: {sorted(DATASETS)}")
    return load_dataset(DATASETS[dataset_name], split="train", **kwargs)


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """The data set without its other columns."""
    return dataset.remove_columns([name for name in dataset.features if name != col_name])


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str = ".",
    cache_dir: str | None = None,
    force_is_torch: bool = False,
    **kwargs: Any,
) -> Any:
    """What a JSON file of the hub says, the tensors of a `.pth` file, or the path of any other file."""
    where = {"subfolder": subfolder, "cache_dir": cache_dir, **kwargs}
    path = Path(huggingface_hub.hf_hub_download(repo_name, file_name, **where))
    if path.suffix == ".pth" or force_is_torch:
        return torch.load(path, map_location="cpu", weights_only=True)
    return read_json(path) if path.suffix == ".json" else str(path)


class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of tokens: `rows[3]["tokens"]`, `rows[:3]["tokens"]`, `rows["tokens"]`."""

    def __init__(self, tokens: Int[Tensor, "row pos"]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, str):
            return {"tokens": self.tokens}[which]
        if isinstance(which, int) and not -len(self) <= which < len(self):
            raise IndexError(f"row {which} of {len(self)}")
        return {"tokens": self.tokens[which]}

    def shuffle(self, seed: int | None = None) -> "TokenRows":
        """The rows in a random order."""
        draw = None if seed is None else torch.Generator().manual_seed(seed)
        return TokenRows(self.tokens[torch.randperm(len(self), generator=draw)])


def tokenize_and_concatenate(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    streaming: bool = False,  # noqa: ARG001
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,  # noqa: ARG001
    set_format: bool = True,  # noqa: ARG001
) -> TokenRows:
    """All texts in a row, an end-of-text token between them, cut into rows of `max_length`; the rest is dropped."""
    ours, texts, parts = native_tokenizer(tokenizer), (each[column_name] for each in dataset), list[Tensor]()
    if ours.eos_token_id is None or (add_bos_token and ours.bos_token_id is None):
        raise ValueError("the tokenizer has no token for the end of a text, or for its beginning")
    while some := list(islice(texts, 1000)):
        ids = [token for row in ours.encode_batch(some) for token in (*row, ours.eos_token_id)]
        parts.append(torch.tensor(ids))
    tokens = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    n_each = max_length - add_bos_token
    rows = tokens[: len(tokens) // n_each * n_each].view(-1, n_each)
    if add_bos_token:
        assert ours.bos_token_id is not None
        rows = torch.cat((torch.full((len(rows), 1), ours.bos_token_id), rows), 1)
    return TokenRows(rows)
