"""Scores of heads written out as loops over positions, straight from patterns, values and weights."""

from collections import defaultdict

from torch import Tensor

from interp import HookedGPT


def looks(pattern: Tensor, tokens: list[int], real: list[bool], queries: list[bool]) -> dict[str, float]:
    """What one head's pattern of one row [query key] scores; NaN where nothing is asked."""
    first = real.index(True)
    shares = defaultdict(list)
    for i in range(len(tokens)):
        if not real[i] or not queries[i] or i == first:
            continue
        row = pattern[i].tolist()
        shares["current"].append(row[i])
        shares["first"].append(row[first])
        shares["previous"].append(row[i - 1])
        same = [j for j in range(first, i) if tokens[j] == tokens[i]]
        others = [j for j in range(first, i) if tokens[j] != tokens[i]]
        if same:
            shares["duplicate"].append(sum(row[j] for j in same))
            shares["induction"].append(sum(row[j + 1] for j in same))
        if same and others:
            behind = [sum(row[j + 1] for j in range(first, i) if tokens[j] == tokens[r]) for r in others]
            shares["induction_text"].append(sum(row[j + 1] for j in same) - sum(behind) / len(behind))
        for back in range(2, len(tokens)):
            if i - back >= first:
                shares[f"{back} back"].append(row[i - back])
    names = ["current", "first", "previous", "duplicate", "induction", "induction_text"]
    names += [f"{back} back" for back in range(2, max(3, len(tokens) // 2))]
    return {name: sum(shares[name]) / len(shares[name]) if shares[name] else float("nan") for name in names}


def moved(pattern: Tensor, writes: Tensor, resid: Tensor, tokens: list[int], real: list[bool]) -> dict[str, float]:
    """How much of what one head moves comes from the first token, and from behind copies; writes [key d_model]."""
    first, from_first, behind = real.index(True), [], []
    for i in range(first + 1, len(tokens)):
        if real[i]:
            lengths = [float(pattern[i, j] * writes[j].norm()) for j in range(i + 1)]
            from_first.append(lengths[first] / sum(lengths))
            same = [j for j in range(first, i) if tokens[j] == tokens[i]]
            if same:
                behind.append(sum(lengths[j + 1] for j in same) / float(resid[i].norm()))
    return {"first_moved": sum(from_first) / len(from_first), "induction_moved": sum(behind) / len(behind)}


def raises(model: HookedGPT, layer: int, head: int, source: int) -> Tensor:
    """What attending to a token alone in the stream does to each logit, norms' divisors and biases left out."""
    block = model.blocks[layer]
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    x = model.W_E[source].double() * model.cfg.embed_scale
    read = _linear_part(block.ln1, x) @ block.attn.W_V[head // group].double() @ block.attn.W_O[head].double()
    return _linear_part(model.ln_final, _linear_part(block.ln1_post, read)) @ model.W_U.double()


def _linear_part(norm: object, x: Tensor) -> Tensor:
    name, gain = type(norm).__name__, getattr(norm, "w", None)
    if name == "NoNorm":
        return x
    x = x - x.mean() if name == "LayerNorm" else x
    return x if gain is None else x * gain.double()
