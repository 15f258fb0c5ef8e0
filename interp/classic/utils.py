"""The small functions that classic notebooks call."""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.classic.datasets import download_file_from_hf, get_dataset, keep_single_column, tokenize_and_concatenate
from interp.classic.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from interp.classic.slices import Slice, SliceInput
from interp.classic.text import USE_DEFAULT_VALUE
from interp.model import mlp
from interp.weights import FactoredMatrix

__all__ = [
    "SUPPORTED_ACTIVATIONS",
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "composition_scores",
    "download_file_from_hf",
    "filter_dict_by_prefix",
    "gelu_fast",
    "gelu_new",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_device_for_block_index",
    "get_input_with_manually_prepended_bos",
    "get_matrix_corner",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_library_available",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "sample_logits",
    "set_nested_attr",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]

_ALIASES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_mid": "mid", "mlp_post": "post",
}  # fmt: skip
_PARTS: dict[str, str] = dict.fromkeys(
    ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"), "attn"
)
_PARTS |= dict[str, str].fromkeys(("pre", "post", "mid", "pre_linear"), "mlp")
_PART_ALIASES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The name of a hook point, of a short one: `("k", 6)`, `("k6")`, `("scale", 4, "ln1")`, `("embed")`."""
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if packed := re.match(r"([a-z]+)(\d+)([a-z]?.*)", name):
        name, layer, layer_type = packed.groups()
    name = _ALIASES.get(name, name)
    part = _PARTS.get(name) or _PART_ALIASES.get(layer_type or "", layer_type)
    if layer is None and name in ("scale", "normalized"):
        part = "ln_final" if not part else f"ln_final.{part}"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{f'{part}.' if part else ''}hook_{name}"


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, list, tuple or number as an array."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, Tensor):
        exact = tensor.detach().cpu()
        return (exact.float() if exact.dtype == torch.bfloat16 else exact).numpy()
    if isinstance(tensor, list | tuple | int | float | bool | str):
        return np.array(tensor)
    raise ValueError(f"Input to to_numpy has invalid type: {type(tensor)}")


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first n entries along each axis; of a factored matrix, factored."""
    return tensor[(slice(n),) * tensor.ndim]


def get_matrix_corner(matrix: FactoredMatrix, n: int = 3) -> Tensor:
    """The first n entries along each axis, multiplied out."""
    return matrix.AB[(slice(n),) * matrix.ndim]


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """Without the first axis, if it is of length 1."""
    return tensor[0] if len(tensor) == 1 else tensor


def transpose(tensor: Float[Tensor, "... a b"]) -> Float[Tensor, "... b a"]:
    """The last two axes swapped."""
    return tensor.mT


def is_square(x: Tensor) -> bool:
    """Whether it is a matrix with as many rows as columns."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether it is a square matrix of zeros above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def check_structure(t1: Tensor, t2: Tensor, *, verbose: bool = False) -> None:
    """Raise if neighbouring rows, or columns, of two matrices compare differently in any place."""
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise AssertionError(f"two matrices of one shape are compared, not {list(t1.shape)} and {list(t2.shape)}")
    wrong = {}
    for what, one, other in (("rows", t1, t2), ("columns", t1.T, t2.T)):
        differs = ((one[:-1] >= one[1:]) != (other[:-1] >= other[1:])).any(1)
        wrong[what] = differs.nonzero().flatten().tolist()
        if verbose:
            print(f"{what} that compare differently with the next: {wrong[what]}")
    if any(wrong.values()):
        raise AssertionError(f"row mismatch: {wrong['rows']}, column mismatch: {wrong['columns']}")


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """The next-token loss, of tokens that are real and follow real ones."""
    log_probs = logits.log_softmax(-1)[..., :-1, :]
    loss = -log_probs.gather(-1, tokens[..., 1:, None])[..., 0]
    if attention_mask is None:
        return loss if per_token else loss.mean()
    mask = attention_mask.bool()
    counts = mask[:, 1:] & mask[:, :-1]
    loss = loss.masked_fill(~counts, 0.0)
    return loss if per_token else loss.sum() / counts.sum()


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Tensor:
    """How often the likeliest token is the next."""
    right: Bool[Tensor, "batch pos-1"] = logits.argmax(-1)[..., :-1] == tokens[..., 1:]
    return right if per_token else right.float().mean()


def gelu_new(input: Tensor) -> Tensor:
    """GELU by its tanh formula."""
    return F.gelu(input, approximate="tanh")


def gelu_fast(input: Tensor) -> Tensor:
    """The same; what made it fast is in torch now."""
    return F.gelu(input, approximate="tanh")


def solu(input: Tensor) -> Tensor:
    """x softmax(x) (Elhage et al., 2022)."""
    return mlp.solu(input)


SUPPORTED_ACTIVATIONS = mlp.ACTIVATIONS | {"gelu_fast": gelu_fast}


def sample_logits(
    final_logits: Float[Tensor, "batch d_vocab"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: Int[Tensor, "batch pos"] | None = None,
) -> Int[Tensor, " batch"]:
    """A token for each row. `freq_penalty` is taken off a logit each time that its token is among `tokens`."""
    if (freq_penalty or repetition_penalty != 1.0) and tokens is None:
        raise ValueError("freq_penalty and repetition_penalty need tokens=, which they count")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}; it must be positive")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}; it must be in (0, 1]")
    logits = final_logits.float()
    if repetition_penalty != 1.0:
        assert tokens is not None
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
        punished = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, punished, logits)
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if freq_penalty:
        assert tokens is not None
        times = torch.zeros_like(logits).scatter_add_(1, tokens, torch.ones_like(tokens, dtype=logits.dtype))
        logits = logits - freq_penalty * times
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before > top_p).scatter(1, order, before > top_p), -torch.inf)
    return logits.softmax(-1).multinomial(1)[:, 0]


def logits_to_df(logits: Tensor, tokenizer: Any = None, top_k: int | None = None) -> Any:
    """The likeliest tokens of one position's logits [d_vocab], as a table."""
    from pandas import DataFrame

    row = logits.detach().float().cpu()
    best = row.topk(min(top_k or len(row), len(row)))
    ids, log_probs = best.indices.tolist(), row.log_softmax(-1)[best.indices]
    columns: dict[str, Any] = {"token_index": ids}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([token]) for token in ids]
    numbers = {"logit": best.values, "log_prob": log_probs, "probability": log_probs.exp()}
    return DataFrame(columns | {name: values.tolist() for name, values in numbers.items()})


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Tensor:
    """|left right| / (|left| |right|), for every pair of their leading axes, or for pairs that go together."""
    if broadcast_dims:
        n_left, n_right = left.ndim - 2, right.ndim - 2
        for _ in range(n_right):
            left = left.unsqueeze(left.ndim - 2)
        for _ in range(n_left):
            right = right.unsqueeze(0)
    if left.rdim != right.ldim:
        raise ValueError(f"Composition scores require left.rdim==right.ldim, shapes were {left.shape}, {right.shape}")
    new_right = right.collapse_r()
    new_left = left.collapse_l()
    together = torch.linalg.matrix_norm(new_left @ new_right)
    return together / (torch.linalg.matrix_norm(new_left) * torch.linalg.matrix_norm(new_right))


def repeat_along_head_dimension(
    tensor: Float[Tensor, "batch pos d_model"], n_heads: int, clone_tensor: bool = True
) -> Float[Tensor, "batch pos head d_model"]:
    """The same for each head."""
    found = tensor[..., None, :].expand(*tensor.shape[:-1], n_heads, tensor.shape[-1])
    return found.clone() if clone_tensor else found


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """Sums along an axis up to each place; with `reverse`, from each place on."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def get_offset_position_ids(
    past_kv_pos_offset: int, attention_mask: Int[Tensor, "batch pos"]
) -> Int[Tensor, "batch p"]:
    """The position of each real token among the real ones, of those behind an offset."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past_kv_pos_offset:]


def filter_dict_by_prefix(dictionary: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below `prefix.`, by the rest of their names."""
    start = f"{prefix.removesuffix('.')}."
    return {name.removeprefix(start): value for name, value in dictionary.items() if name.startswith(start)}


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """`a.b.c` of an object."""
    for name in attr_str.split("."):
        obj = getattr(obj, name)
    return obj


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Set `a.b.c` of an object."""
    owner, _, name = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, owner) if owner else obj, name, value)


def get_device() -> str:
    """Where models go by default."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def print_gpu_mem(step_name: str = "") -> None:
    """Say how much of the GPU's memory is taken."""
    taken = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    print(f"{step_name} ~ {taken:.2f} GiB allocated on GPU.")


def get_attention_mask(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool, padding_side: str | None = None
) -> Int[Tensor, "batch pos"]:
    """1 on real tokens. Where padding looks like the beginning of a text, the one before the text is real."""
    is_pad = tokens == tokenizer.pad_token_id
    from_left = (padding_side or getattr(tokenizer, "padding_side", "right")) == "left"
    run = is_pad.long().cumprod(1) if from_left else is_pad.long().flip(1).cumprod(1).flip(1)
    mask = 1 - run
    if from_left and prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        last_pad = run.sum(1) - 1
        rows = (last_pad >= 0).nonzero().flatten()
        mask[rows, last_pad[rows]] = 1
    return mask


def get_tokens_with_bos_removed(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], padding_side: str | None = None
) -> Int[Tensor, "batch p"]:
    """Without the beginning-of-text token of each row."""
    if (padding_side or getattr(tokenizer, "padding_side", "right")) == "right":
        return tokens[:, 1:]
    at = (tokens == tokenizer.bos_token_id).long()
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        at = at.cumprod(1)
        first = at.sum(1) - 1
    else:
        first = at.argmax(1)
    keep = torch.arange(tokens.shape[1], device=tokens.device) != first[:, None]
    return tokens[keep].view(len(tokens), -1)


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """What overrides a default, or that."""
    return default_flag if override is None else override


class LocallyOverridenDefaults:
    """`with LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):` these are a model's defaults."""

    def __init__(self, model: Any, **overrides: Any) -> None:
        if unknown := sorted(set(overrides) - {"prepend_bos", "padding_side"}):
            raise ValueError(f"{unknown} are no defaults; allowed: prepend_bos, padding_side")
        self.model, self.overrides = model, overrides

    def __enter__(self) -> None:
        model = self.model
        self.before = model.cfg.default_prepend_bos, model.default_padding_side
        bos, side = (self.overrides.get(name) for name in ("prepend_bos", "padding_side"))
        self._set(*map(override_or_use_default_value, self.before, (bos, side)))

    def __exit__(self, *_: object) -> None:
        self._set(*self.before)

    def _set(self, bos: bool, side: str) -> None:
        self.model.cfg.default_prepend_bos, self.model.default_padding_side = bos, side


def get_input_with_manually_prepended_bos(bos_token: str | None, input: str | list[str]) -> str | list[str]:
    """A text, or texts, behind the beginning-of-text token."""
    start = bos_token or ""
    return start + input if isinstance(input, str) else [start + each for each in input]


def get_device_for_block_index(
    index: int,  # noqa: ARG001
    cfg: Any,
    device: torch.device | str | None = None,
) -> torch.device:
    """Where a layer lies: all of a model lie on one device."""
    return torch.device(device or cfg.device or "cpu")


def is_library_available(name: str) -> bool:
    """Whether a library is installed."""
    return find_spec(name) is not None


def test_prompt(
    prompt: str,
    answer: str | Sequence[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Say how well a model does on an answer, and what it finds likeliest, token by token."""
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [each if each.startswith(" ") else f" {each}" for each in answers]
    start = model.to_tokens(prompt, prepend_bos=prepend_bos)
    ids = [model.to_tokens(each, prepend_bos=False)[0] for each in answers]
    if len(answers) > 1:
        ids = [each[:1] for each in ids]
    if print_details:
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        print("Tokenized answers:", [model.to_str_tokens(each) for each in ids])
    with torch.no_grad():
        logits = [model(torch.cat((start, each[None].to(start)), 1))[0, start.shape[1] - 1 : -1] for each in ids]
    ranks = []
    for step in range(len(ids[0])):
        found = []
        for each, row in zip(ids, logits, strict=True):
            token, scores = int(each[step]), row[step]
            text, rank = model.to_str_tokens(each[step : step + 1])[0], int((scores > scores[token]).sum())
            found.append((text, rank))
            if print_details:
                prob = scores.softmax(-1)[token].item()
                print(f"Rank: {rank: <8} Logit: {scores[token].item():5.2f} Prob: {prob:6.2%} Token: |{text}|")
        if print_details:
            best = logits[0][step].topk(min(top_k, logits[0].shape[-1]))
            for i, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                prob = logits[0][step].softmax(-1)[token].item()
                print(f"Top {i}th token. Logit: {value:5.2f} Prob: {prob:6.2%} Token: |{model.to_string([token])}|")
        ranks.append(found if len(answers) > 1 else found[0])
    print("Ranks of the answer tokens:", ranks)


test_prompt.__test__ = False  # type: ignore[attr-defined]  (not a test, whatever its name)
