"""Circuits read in tokens: which logits heads raise, whether they copy, and what singular directions say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.model import HookedGPT
from interp.results import Result, labelled
from interp.weights import stream
from interp.weights.factored import FactoredMatrix

Tokens = str | Sequence[str] | Sequence[int] | Int[Tensor, " token"]

_CHUNK = 2**22  # logits held at once


@dataclass(frozen=True)
class Cost:
    """What a computation takes, known beforehand."""

    flops: float
    bytes: int  # held at once, beside the model and the result

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.2g} TFLOP, {self.bytes / 1e6:.0f} MB"


def ov_cost(model: HookedGPT, n_tokens: int, n_heads: int | None = None) -> Cost:
    """What the end-to-end OV logits of so many source tokens take, in so many heads or all."""
    cfg = model.cfg
    n_heads = cfg.n_layers * cfg.n_heads if n_heads is None else n_heads
    by_head, by_token = _products(model, n_tokens)
    held = n_tokens * (2 * cfg.d_model + cfg.n_heads * cfg.d_head) + 4 * cfg.n_heads * cfg.d_model * cfg.d_head
    held += max(_CHUNK, cfg.d_vocab_out) + (min(by_head, by_token) == by_head) * cfg.d_head * cfg.d_vocab_out
    held += (by_token < by_head) * cfg.n_heads * n_tokens * cfg.d_model
    itemsize = stream.dtype_of(model).itemsize
    return Cost(2.0 * n_heads * (n_tokens * cfg.d_model * cfg.d_head + min(by_head, by_token)), held * itemsize)


def _products(model: HookedGPT, n_tokens: int) -> tuple[int, int]:
    """Multiplications in a head, if W_O W_U is made for all tokens, or what each writes is multiplied with W_U."""
    cfg = model.cfg
    by_head = cfg.d_head * (cfg.d_model + n_tokens) * cfg.d_vocab_out
    return by_head, n_tokens * cfg.d_model * (cfg.d_head + cfg.d_vocab_out)


@torch.no_grad()
def ov_top_tokens(
    model: HookedGPT,
    tokens: Tokens,
    k: int = 10,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    effective_embedding: bool = False,
    largest: bool = True,
    progress: bool = True,
) -> Result:
    """The k tokens whose logits a head raises most (or lowers most) by attending to a source token.

    [layer head source rank], entries of `ov_circuit(model, vocab=True)`, which is never formed: the change of a logit
    but for the divisors of norms. Coordinates `token` (and `text`, where there is a tokenizer) say of which. Texts are
    one token each; layers and heads not given are all. `ov_cost` says beforehand what it takes.
    """
    sources = _token_ids(model, tokens)
    _check_k(model, k)
    at_layers, at_heads = _indices(model, "layer", layers), _indices(model, "head", heads)
    embedded = stream.Embedded.of(model, effective_embedding, sources)
    shape = len(at_layers), len(at_heads) * len(sources), k
    values, found = embedded.plain.new_empty(shape, device="cpu"), torch.empty(shape, dtype=torch.long)
    for i, rows, logits in _ov_logits(model, embedded, at_layers, at_heads, progress):
        top = logits.topk(k, largest=largest)
        values[i, rows], found[i, rows] = top.values.cpu(), top.indices.cpu()
    axes: dict[str, Sequence[Any]] = {"layer": at_layers, "head": at_heads, "source": sources.tolist()}
    values, found = (each.unflatten(1, (len(at_heads), -1)) for each in (values, found))
    about = {"method": "top tokens of OV circuits", "sign": "raised" if largest else "lowered"}
    about |= _provenance(model, effective_embedding)
    return _with_tokens(model, labelled(values, {**axes, "rank": range(k)}, "logit", about), found)


@torch.no_grad()
def copying_scores(
    model: HookedGPT,
    method: Literal["eigenvalues", "top_k"] = "eigenvalues",
    *,
    k: int = 10,
    sign: Literal[1, -1] = 1,
    tokens: Tokens | None = None,
    effective_embedding: bool = False,
    progress: bool = True,
) -> Result:
    """How far each head's end-to-end OV circuit maps tokens to themselves, [layer head].

    - "eigenvalues": the sum of its eigenvalues' real parts by the sum of their sizes, from -1 to 1 (Elhage et al.,
      2021). Heads with random weights reach 0.5 in a tenth of cases at d_head 4, in none at 16.
    - "top_k": the share of tokens that are, however ties are broken, among the k that attending to them raises most;
      with `sign=-1`, lowers most. Over `tokens`, or all: d_vocab² logits a head, of which a chunk at a time is held.

    A head that writes nothing scores 0.
    """
    cfg = model.cfg
    if method not in ("eigenvalues", "top_k"):
        raise ValueError(f"method={method!r}; allowed: 'eigenvalues', 'top_k'")
    if cfg.d_vocab != cfg.d_vocab_out:
        raise ValueError(
            f"d_vocab={cfg.d_vocab} but d_vocab_out={cfg.d_vocab_out}: tokens read and predicted are not the same, "
            "so none can be copied"
        )
    about = {"method": f"copying, {method}"} | _provenance(model, effective_embedding)
    if method == "eigenvalues":
        if tokens is not None or sign != 1:
            raise ValueError("tokens and sign are for method='top_k'; eigenvalues are of all tokens, with their signs")
        scores = _eigenvalue_scores(model, stream.Embedded.of(model, effective_embedding))
    else:
        _check_k(model, k)
        if sign not in (1, -1):
            raise ValueError(f"sign={sign!r}; allowed: 1 (raised most), -1 (lowered most)")
        every = torch.arange(cfg.d_vocab, device=model.device)
        sources = every if tokens is None else _token_ids(model, tokens)
        scores = _top_k_shares(model, sources, k, sign, effective_embedding, progress)
        about |= {"k": k, "sign": sign, "tokens": len(sources)}
    return labelled(scores, {"layer": range(cfg.n_layers), "head": range(cfg.n_heads)}, "copying", about)


@torch.no_grad()
def svd_tokens(
    matrix: FactoredMatrix | Float[Tensor, "rows columns"],
    model: HookedGPT,
    k: int = 10,
    *,
    side: Literal["writes", "reads"] = "writes",
    n_directions: int = 10,
    effective_embedding: bool = False,
) -> Result:
    """The greatest singular directions of a circuit or a weight, in the tokens at their ends: [direction sign rank].

    What it writes, x @ matrix, is read by the unembedding through the final norm's gain: the k logits that each
    direction raises most. What it reads is held against the embeddings: the k tokens that reach most along it. A
    direction has no sign of its own, and so has tokens of both ends, sign 1 and -1; `writes` of one sign answer `reads`
    of the same. Coordinates: `token`, `text`, and `singular_value` of each direction.

    Such matrices are `ov_circuit(model, 3, 2)`, `model.blocks[3].mlp.W_out` (what it writes), `W_in` (what it reads).
    """
    if side not in ("writes", "reads"):
        raise ValueError(f"side={side!r}; allowed: 'writes', 'reads'")
    if matrix.ndim != 2:
        raise ValueError(f"the matrix has shape {list(matrix.shape)}: take one, as in ov_circuit(model, layer, head)")
    width = matrix.shape[1] if side == "writes" else matrix.shape[0]
    if width != model.cfg.d_model:
        end = "columns" if side == "writes" else "rows"
        raise ValueError(
            f"side={side!r}: the matrix has {width} {end}; on the stream it has d_model={model.cfg.d_model}"
        )
    if effective_embedding and side == "writes":
        raise ValueError("effective_embedding is for side='reads': what is written is read by W_U")
    if isinstance(matrix, FactoredMatrix):
        U, S, Vh = FactoredMatrix(stream.exact(matrix.A), stream.exact(matrix.B)).svd()
    else:
        U, S, Vh = torch.linalg.svd(stream.exact(matrix), full_matrices=False)
    if not 1 <= n_directions <= len(S):
        raise ValueError(f"n_directions={n_directions}; allowed: 1 to {len(S)}, the singular values")
    if side == "writes":
        _check_k(model, k)
        along = stream.through(model.ln_final, Vh[:n_directions]) @ stream.W_U(model)
    else:
        embedded = stream.Embedded.of(model, effective_embedding).at(1 if effective_embedding else 0)
        if not 1 <= k <= len(embedded):
            raise ValueError(f"k={k}; allowed: 1 to {len(embedded)}, the tokens that have an embedding")
        along = (embedded @ U[:, :n_directions]).mT
    top = torch.stack((along, -along), 1).topk(k)
    values = top.values * torch.tensor([1, -1], device=top.values.device)[:, None]
    about = {"method": f"singular directions, {side}"} | _provenance(model, effective_embedding)
    axes: dict[str, Sequence[Any]] = {"direction": range(n_directions), "sign": [1, -1], "rank": range(k)}
    found = _with_tokens(model, labelled(values, axes, "projection", about), top.indices)
    return found.assign_coords(singular_value=("direction", S[:n_directions].cpu().numpy()))


def _eigenvalue_scores(model: HookedGPT, embedded: stream.Embedded) -> Float[Tensor, "layer head"]:
    """The eigenvalues of W_E W_V W_O W_U that are not 0 are those of W_O W_U W_E W_V, d_head × d_head."""
    scores, tokens, through_tokens = [], None, None
    for layer in range(model.cfg.n_layers):
        if (here := embedded.at(layer)) is not tokens:
            tokens, through_tokens = here, stream.W_U(model) @ here
        assert through_tokens is not None
        circuit = stream.read_off(model, stream.W_O(model, layer), layer) @ through_tokens @ stream.W_V(model, layer)
        eigenvalues = torch.linalg.eigvals(circuit)
        sizes = eigenvalues.abs().sum(-1)
        scores.append(torch.where(sizes > 0, eigenvalues.real.sum(-1) / sizes, 0))
    return torch.stack(scores)


def _top_k_shares(
    model: HookedGPT, sources: Int[Tensor, " token"], k: int, sign: int, effective: bool, progress: bool
) -> Float[Tensor, "layer head"]:
    cfg = model.cfg
    is_copied = torch.empty(cfg.n_layers, cfg.n_heads * len(sources))
    embedded = stream.Embedded.of(model, effective, sources)
    for i, rows, logits in _ov_logits(model, embedded, range(cfg.n_layers), range(cfg.n_heads), progress):
        own = logits.gather(1, sources[torch.arange(rows.start, rows.stop, device=sources.device) % len(sources), None])
        n_ahead = (logits >= own if sign == 1 else logits <= own).sum(1)  # with itself
        is_copied[i, rows] = (n_ahead <= k).float().cpu()
    return is_copied.unflatten(1, (cfg.n_heads, -1)).mean(-1)


def _ov_logits(
    model: HookedGPT, embedded: stream.Embedded, layers: Sequence[int], heads: Sequence[int], progress: bool
) -> Iterator[tuple[int, slice, Float[Tensor, "row d_vocab_out"]]]:
    """Chunks of the end-to-end OV circuit: the layer's index in `layers`, the rows (head token), their logits.

    The logits are overwritten by those of the next chunk.
    """
    n_tokens, W_U = len(embedded.plain), stream.W_U(model)
    by_head, by_token = _products(model, n_tokens)
    n_rows = max(1, _CHUNK // model.cfg.d_vocab_out)
    buffer = W_U.new_empty(min(n_rows, len(heads) * n_tokens), model.cfg.d_vocab_out)
    doing = f"OV circuits ({ov_cost(model, n_tokens, len(layers) * len(heads))})"
    total = len(layers) * len(heads) * n_tokens
    with tqdm(total=total, desc=doing, unit=" rows", delay=1.0, disable=not progress) as bar:
        for i, layer in enumerate(layers):
            reads = embedded.at(layer) @ stream.W_V(model, layer)[list(heads)]
            writes = stream.read_off(model, stream.W_O(model, layer)[list(heads)], layer)
            if by_token < by_head:
                parts = [((reads @ writes).flatten(0, 1), W_U)]
            else:
                parts = ((read, write @ W_U) for read, write in zip(reads, writes, strict=True))
            first = 0
            for left, right in parts:
                for some in left.split(n_rows):
                    rows = slice(first, first := first + len(some))
                    yield i, rows, torch.mm(some, right, out=buffer[: len(some)])
                    bar.update(len(some))


def _with_tokens(model: HookedGPT, result: Result, tokens: Int[Tensor, "..."]) -> Result:
    """The result with each number's token, and its text where there is a tokenizer."""
    found = result.assign_coords(token=(result.dims, tokens.cpu().numpy()))
    if model.tokenizer is None:
        return found
    ids, places = np.unique(tokens.cpu().numpy(), return_inverse=True)
    texts = np.array(model.tokenizer.token_strings(ids.tolist()), dtype=object)
    return found.assign_coords(text=(result.dims, texts[places].reshape(tokens.shape)))


def _token_ids(model: HookedGPT, tokens: Tokens) -> Int[Tensor, " token"]:
    listed = tokens.tolist() if isinstance(tokens, Tensor) else [tokens] if isinstance(tokens, str) else list(tokens)
    ids = [model.to_single_token(token) if isinstance(token, str) else token for token in listed]
    if not ids:
        raise ValueError("no source token was given")
    if wrong := [token for token in ids if not 0 <= token < model.cfg.d_vocab]:
        raise ValueError(f"no such tokens: {wrong}; the model knows 0 to {model.cfg.d_vocab - 1}")
    return torch.tensor(ids, device=model.device)


def _indices(model: HookedGPT, what: Literal["layer", "head"], given: Sequence[int] | None) -> list[int]:
    if given is None:
        return list(range(model.cfg.n_layers if what == "layer" else model.cfg.n_heads))
    if not list(given):
        raise ValueError(f"no {what} was given")
    return [stream.checked_index(model, what, index) for index in given]


def _check_k(model: HookedGPT, k: int) -> None:
    if not 1 <= k <= model.cfg.d_vocab_out:
        raise ValueError(f"k={k}; allowed: 1 to {model.cfg.d_vocab_out}, the tokens that the model predicts")


def _provenance(model: HookedGPT, effective: bool) -> dict[str, Any]:
    return {"embedding": "effective" if effective else "plain", "model": model.fingerprint()}
