"""Composition (Elhage et al., 2021): how much of what one head writes a later one reads, from the weights alone.

With row vectors, sender 1 and receiver 2:

    Q: ‖W_OV1 W_QK2‖ / (‖W_OV1‖ ‖W_QK2‖)
    K: ‖W_OV1 W_QK2ᵀ‖ / (‖W_OV1‖ ‖W_QK2‖)
    V: ‖W_OV1 W_OV2‖ / (‖W_OV1‖ ‖W_OV2‖)

in Frobenius norms. Each is ‖L R‖ / (‖L‖ ‖R‖) with a thin L [d_head, d_model] of the sender and R [d_model, d_head] of
the receiver: the outer factors are replaced by their triangles of a QR decomposition, which have the same norms. So a
pair costs one product of that size. Heads with random weights score about 1 / sqrt(d_model), whatever their rank.
"""

import re
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.model import HookedGPT
from interp.model.linear import product
from interp.results import Result, labelled
from interp.weights import stream
from interp.weights.circuits import ov_circuit, qk_circuit
from interp.weights.factored import FactoredMatrix

Kind = Literal["Q", "K", "V"]
_PATH = re.compile(r"L\d+H\d+(?:->L\d+H\d+)+(?:\.([qkv]))?")


@torch.no_grad()
def composition_scores(model: HookedGPT, kind: Kind | Literal["all"] = "all", *, progress: bool = True) -> Result:
    """The scores of all pairs of heads, [sender_layer sender receiver_layer receiver]; "all" has an axis `kind` first.

    NaN where the sender is not in an earlier layer; 0 where a head reads or writes nothing. `attrs["baseline"]` is what
    random heads score (`random_composition` has their spread). Gains of norms are taken in.
    """
    if kind not in (*get_args(Kind), "all"):
        raise ValueError(f"kind={kind!r}; allowed: 'Q', 'K', 'V', 'all'")
    kinds: tuple[Kind, ...] = get_args(Kind) if kind == "all" else (kind,)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    writes = [_sent(model, layer) for layer in range(n_layers)]
    scores = torch.full((len(kinds), n_layers, n_heads, n_layers, n_heads), torch.nan, dtype=writes[0].dtype)
    pairs = len(kinds) * n_layers * (n_layers - 1) // 2
    with tqdm(total=pairs, desc="composition", unit=" pairs of layers", delay=1.0, disable=not progress) as bar:
        for receiver in range(1, n_layers):
            reads = torch.cat([_received(model, receiver, each) for each in kinds])
            for sender in range(receiver):
                written = stream.carried(model, writes[sender], sender, receiver)
                found = _scores(written, reads).unflatten(1, (len(kinds), n_heads))
                scores[:, sender, :, receiver] = found.movedim(1, 0).cpu()
                bar.update(len(kinds))
    each_head = {"sender_layer": range(n_layers), "sender": range(n_heads)}
    axes = {**each_head, "receiver_layer": range(n_layers), "receiver": range(n_heads)}
    about = {"method": "composition", "baseline": model.cfg.d_model**-0.5, "model": model.fingerprint()}
    if kind == "all":
        return labelled(scores, {"kind": kinds, **axes}, "composition", about)
    return labelled(scores[0], axes, "composition", about | {"kind": kind})


def random_composition(d_model: int, d_head: int, n: int = 100, *, seed: int = 0) -> Float[Tensor, " sample"]:
    """Scores of n pairs of heads with random normal weights: the spread that a real score is to be held against.

    All kinds have the same.
    """
    if min(d_model, d_head, n) < 1:
        raise ValueError(f"d_model={d_model}, d_head={d_head}, n={n}; all must be positive")
    draw = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(n):
        V, O, Q, K = torch.randn(4, d_model, d_head, generator=draw, dtype=torch.float64)  # noqa: E741
        sent, received = _triangle(V[None]) @ O.mT, _triangle(K[None]) @ Q.mT
        scores.append(_scores(sent, received).item())
    return torch.tensor(scores)


def virtual_weights(model: HookedGPT, path: str) -> FactoredMatrix:
    """What heads in a row do together, factored: `virtual_weights(model, "L0H3->L1H2")` is W_OV1 W_OV2.

    A path that ends in `.q` or `.k`, as in "L0H3->L1H2.k", gives W_OV1 W_QK2 or W_OV1 W_QK2ᵀ: what the first head reads
    (row) against what stands at the other end of the last one's look (column). Gains of norms are taken in.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError(f"path={path!r}; it must look like 'L0H3->L1H2' or 'L0H3->L1H2->L3H0.k'")
    nodes, end = path.removesuffix(f".{match[1]}").split("->"), match[1] or "v"
    places = [(int(layer), int(head)) for layer, head in (node[1:].split("H") for node in nodes)]
    layers = [stream.checked_index(model, "layer", layer) for layer, _ in places]
    heads = [stream.checked_index(model, "head", head) for _, head in places]
    if any(later <= earlier for earlier, later in pairwise(layers)):
        raise ValueError(f"path={path!r}: each head must be in a later layer than the one before it")
    product = ov_circuit(model, layers[0], heads[0])
    for i in range(1, len(layers)):
        arriving = FactoredMatrix(product.A, stream.carried(model, product.B, layers[i - 1], layers[i]))
        is_last = i == len(layers) - 1
        product = arriving.times(_circuit(model, layers[i], heads[i], end if is_last else "v"))
    return product


def _circuit(model: HookedGPT, layer: int, head: int, end: str) -> FactoredMatrix:
    if end == "v":
        return ov_circuit(model, layer, head)
    W_QK = qk_circuit(model, layer, head)
    return W_QK if end == "q" else W_QK.T


def _sent(model: HookedGPT, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """What heads write, with what they read turned into d_head coordinates."""
    return _triangle(stream.W_V(model, layer)) @ stream.W_O(model, layer)


def _received(model: HookedGPT, layer: int, kind: Kind) -> Float[Tensor, "head d_head d_model"]:
    """What heads read, with the other end of their circuit turned into d_head coordinates."""
    if kind == "V":
        return _triangle(stream.W_O(model, layer).mT) @ stream.W_V(model, layer).mT
    W_Q, W_K = stream.W_Q(model, layer), stream.W_K(model, layer)
    return _triangle(W_K) @ W_Q.mT if kind == "Q" else _triangle(W_Q) @ W_K.mT


def _triangle(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head rank d_head"]:
    """R of W = Q R: for any X, ‖W X‖ = ‖R X‖."""
    return torch.linalg.qr(W, mode="r").R


def _scores(
    writes: Float[Tensor, "sender rank d_model"], reads: Float[Tensor, "receiver rank2 d_model"]
) -> Float[Tensor, "sender receiver"]:
    """‖L R‖ / (‖L‖ ‖R‖) of each pair; of R, its transpose."""
    together = product(writes.flatten(0, 1), reads.flatten(0, 1), None)
    squares = together.square().unflatten(1, reads.shape[:2]).sum(-1).unflatten(0, writes.shape[:2]).sum(1)
    norms = torch.linalg.matrix_norm(writes)[:, None] * torch.linalg.matrix_norm(reads)
    return torch.where(norms > 0, squares.sqrt() / norms, 0)
