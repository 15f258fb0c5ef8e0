"""The stages of a walk: which quantities there are at each."""

from collections.abc import Callable
from dataclasses import replace

import torch

from interp.model.norms import NoNorm
from interp.walk.way import Quantity, Walk, indexed
from interp.weights.stream import checked_index

LOUDEST = 8  # heads whose results are told apart


def quantities(this: Walk, stage: str, head: int) -> list[Quantity]:
    """What there is at one of `STAGES`, for one head; nothing where the model has no such stage."""
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r}; allowed: {list(STAGES)}")
    with torch.no_grad():
        return STAGES[stage](this, checked_index(this.model, "head", head))


def _embedding(this: Walk, _: int) -> list[Quantity]:
    return [this.hooked("embedding", "hook_embed")]


def _position(this: Walk, _: int) -> list[Quantity]:
    if not this.model.cfg.adds_positions:
        return []
    into = this.hooked("stream", "blocks.0.hook_resid_pre")
    said = replace(into, formula="embedding + position")
    return [this.hooked("embedding", "hook_embed"), this.hooked("position", "hook_pos_embed"), said]


def _stream(this: Walk) -> Quantity:
    return this.hooked("stream", this.at("hook_resid_pre"))


def _attn_reads(this: Walk) -> list[Quantity]:
    """The stream as attention reads it, and before that what the norm does, where there is one."""
    stream = _stream(this)
    if not this.has(this.at("ln1.hook_scale")):
        return [stream]
    return [stream, *this.through(this.at("ln1"), "what attention reads")]


def _attn_norm(this: Walk, _: int) -> list[Quantity]:
    found = _attn_reads(this)
    return found if len(found) > 1 else []


def _qkv(this: Walk, head: int) -> list[Quantity]:
    of_keys = this.patterns.group(head)
    whose, has_bias = {"q": head, "k": of_keys, "v": of_keys}, this.model.cfg.bias_qkv
    made = [this.hooked(x, this.at(f"attn.hook_{x}"), of) for x, of in whose.items()]
    beside = [this.hooked("position", "hook_pos_embed")] if this.model.cfg.is_shortformer else []
    both = "(what attention reads + position)"
    read = dict.fromkeys("QK", both if beside else "what attention reads") | {"V": "what attention reads"}
    formulas = [f"{said} × W_{x}" + (f" + b_{x}" if has_bias else "") for x, said in read.items()]
    return [
        _attn_reads(this)[-1],
        *beside,
        *(replace(each, formula=said) for each, said in zip(made, formulas, strict=True)),
    ]


def _turn(this: Walk, head: int) -> list[Quantity]:
    cfg = this.model.cfg
    turns = cfg.turns(this.layer)
    if not turns and not cfg.use_qk_norm:
        return []
    *_, q, k, _ = _qkv(this, head)
    how = " and ".join(said for said, is_so in (("normed", cfg.use_qk_norm), ("turned", turns)) if is_so)
    return [
        q,
        replace(_query(this, head), name=f"q {how}", formula=f"q, {how}"),
        k,
        replace(_key(this, head, this.pos), name=f"k {how}", formula=f"k, {how}"),
    ]


def _query(this: Walk, head: int) -> Quantity:
    values = this.patterns.queries(this.layer, head)[0, this.pos]
    code = f"found.queries({this.layer}, {head})[0, {this.pos}]"
    hook = this.at("attn.hook_rot_q")
    axes, shape = ("pos", "d_head"), (this.tokens.shape[1], len(values))
    return Quantity("q", "the query here", axes, shape, values, code, hook if this.has(hook) else None)


def _key(this: Walk, head: int, pos: int) -> Quantity:
    values = this.patterns.keys(this.layer, head)[0, pos]
    code = f"found.keys({this.layer}, {head})[0, {pos}]"
    hook = this.at("attn.hook_rot_k")
    axes, shape = ("pos", "d_head"), (this.tokens.shape[1], len(values))
    return Quantity(f"k of {pos}", "a key", axes, shape, values, code, hook if this.has(hook) else None)


def _rows(this: Walk, head: int, **formulas: str) -> list[Quantity]:
    """Rows of the head's matrices: those of the query here."""
    found, n = this.steps(head), this.tokens.shape[1]
    names = {"product": "q · k", "score": "scaled", "masked": "masked", "weight": "weights"}
    hooks = {"masked": this.at("attn.hook_attn_scores"), "weight": this.at("attn.hook_pattern")}
    return [
        Quantity(
            names[row], formula, ("query_pos", "key_pos"), (n, n),
            torch.from_numpy(found[row].to_numpy()[0]), f"steps.{row}.values[0]", hooks.get(row),
        )
        for row, formula in formulas.items()
    ]  # fmt: skip


def _scores(this: Walk, head: int) -> list[Quantity]:
    key = this.strongest(head, 1)[0]
    return [_query(this, head), _key(this, head, key), *_rows(this, head, product="the sum of products over d_head")]


def _scaling(this: Walk, head: int) -> list[Quantity]:
    cap = this.model.cfg.attn_scores_soft_cap
    capped = "" if cap is None else f", capped at ±{cap:g}"
    capped += ", less a slope × distance" if this.model.cfg.leans else ""
    return _rows(this, head, product="q · k", score=f"q · k / {this.model.cfg.attn_scale:.4g}{capped}")


def _mask(this: Walk, head: int) -> list[Quantity]:
    return _rows(this, head, score="scaled", masked="−∞ where the query may not look")


def _softmax(this: Walk, head: int) -> list[Quantity]:
    return _rows(this, head, masked="masked", weight="exp(masked) / their sum")


def _mix(this: Walk, head: int) -> list[Quantity]:
    (weights,) = _rows(this, head, weight="over all keys 1")
    z = this.hooked("z", this.at("attn.hook_z"), head)
    v = this.patterns.values(this.layer, head)[0]
    parts = []
    for key in this.strongest(head):
        code = f"float(steps.weight[0, {key}]) * found.values({this.layer}, {head})[0, {key}]"
        values = float(weights.values[key]) * v[key]
        parts.append(this.made(f"weight × v of {key}", "what this key gives", z, values, code))
    return [weights, *parts, replace(z, formula="the sum over all keys")]


def _heads(this: Walk, head: int) -> list[Quantity]:
    attn, of_z = this.model.blocks[this.layer].attn, this.at("attn.hook_z")
    z, out = this.hooked("z", of_z, head), this.hooked("attention adds", this.at("hook_attn_out"))
    path, hook = f"model.{indexed(this.at('attn'))}", this.at("attn.hook_result")
    writes = [this.cache[of_z][0, 0, i] @ attn.W_O[i] for i in range(this.model.cfg.n_heads)]
    sizes = torch.stack(writes).float().norm(dim=-1)
    sizes[head] = torch.inf
    results = [
        Quantity(
            f"head {i} writes", f"its z × W_O[{i}]", ("pos", "d_model"), out.shape, writes[i],
            f"cache[{of_z!r}][0, {this.pos}, {i}] @ {path}.W_O[{i}]", hook if i == head else None,
        )
        for i in sorted(sizes.topk(min(LOUDEST, len(sizes))).indices.tolist())
    ]  # fmt: skip
    code = f"{path}.write(cache[{of_z!r}])[0, {this.pos}]"
    values = attn.write(this.cache[of_z])[0, 0]
    formula = "the sum over heads" + ("" if attn.b_O is None else " + b_O")
    joined = this.made("all heads write", formula, out, values, code)
    return [z, *results, joined, *_out_norm(this, "ln1_post", "hook_attn_out", "attention adds")]


def _out_norm(this: Walk, norm: str, hook: str, name: str) -> list[Quantity]:
    """What is added, where a norm stands between it and what was written."""
    if this.model.cfg.norm_position == "post" or not this.has(this.at(f"{norm}.hook_scale")):
        return []
    added = replace(this.hooked(name, this.at(hook)), formula="normed × gain")
    return [*this.through(this.at(norm), name)[:2], added]


def _added(this: Walk, before: str, out: str, after: str, norm: str, name: str) -> list[Quantity]:
    """stream + what is added = stream; where the model norms the sum, that too."""
    stream, more = this.hooked("stream", before), replace(this.hooked(name, this.at(out)), formula="what was written")
    end = replace(this.hooked("stream after", after), formula="their sum")
    if this.model.cfg.norm_position != "post" or not this.has(this.at(f"{norm}.hook_scale")):
        return [stream, more, end]
    both = this.made("sum", "their sum", stream, stream.values + more.values, f"{stream.code} + {more.code}")
    return [stream, more, both, *this.through(this.at(norm), "stream after")[:2], replace(end, formula="normed × gain")]


def _attn_added(this: Walk, _: int) -> list[Quantity]:
    if this.model.cfg.parallel_attn_mlp:
        return []
    after = this.at("hook_resid_post" if this.model.cfg.attn_only else "hook_resid_mid")
    return _added(this, this.at("hook_resid_pre"), "hook_attn_out", after, "ln1_post", "attention adds")


def _mlp_stream(this: Walk) -> Quantity:
    mid = this.at("hook_resid_mid")
    return this.hooked("stream", mid if this.has(mid) else this.at("hook_resid_pre"))


def _mlp_reads(this: Walk) -> list[Quantity]:
    """The stream as the MLP reads it, and before that what the norm does, where there is one."""
    norm = "ln1" if this.model.cfg.parallel_shared_norm else "ln2"
    if not this.has(this.at(f"{norm}.hook_scale")):
        return [_mlp_stream(this)]
    return [_mlp_stream(this), *this.through(this.at(norm), "what the MLP reads")]


def _mlp_norm(this: Walk, _: int) -> list[Quantity]:
    found = [] if this.model.cfg.attn_only else _mlp_reads(this)
    return found if len(found) > 1 else []


def _neurons(this: Walk) -> list[Quantity]:
    cfg = this.model.cfg
    bias = " + b_in" if cfg.bias_mlp else ""
    into, after = f"what the MLP reads × W_in{bias}", f"{cfg.act_fn.removesuffix('_ln')}(pre)"
    if cfg.act_fn == "solu_ln":
        formulas = {"pre": ("hook_pre", into), "mid": ("hook_mid", after), "post": ("hook_post", "mid, normed")}
    elif not cfg.gated_mlp:
        formulas = {"pre": ("hook_pre", into), "post": ("hook_post", after)}
    else:
        formulas = {"pre": ("hook_pre", "what the MLP reads × W_gate"), "gated by": ("hook_pre_linear", into)}
        formulas["post"] = "hook_post", f"{after} × gated by"
    return [replace(this.hooked(name, this.at(f"mlp.{end}")), formula=said) for name, (end, said) in formulas.items()]


def _expand(this: Walk, _: int) -> list[Quantity]:
    return [] if this.model.cfg.attn_only else [_mlp_reads(this)[-1], *_neurons(this)[:-1]]


def _activation(this: Walk, _: int) -> list[Quantity]:
    return [] if this.model.cfg.attn_only else _neurons(this)


def _contract(this: Walk, _: int) -> list[Quantity]:
    if this.model.cfg.attn_only:
        return []
    formula = "post × W_out" + (" + b_out" if this.model.cfg.bias_mlp else "")
    post, out = _neurons(this)[-1], replace(this.hooked("the MLP adds", this.at("hook_mlp_out")), formula=formula)
    if not (after := _out_norm(this, "ln2_post", "hook_mlp_out", "the MLP adds")):
        return [post, out]
    path = f"model.{indexed(this.at('mlp'))}.down"
    values = this.model.get_submodule(this.at("mlp.down"))(post.values)
    return [post, this.made("written", formula, out, values, f"{path}({post.code})"), *after]


def _mlp_added(this: Walk, _: int) -> list[Quantity]:
    cfg, after = this.model.cfg, this.at("hook_resid_post")
    if cfg.attn_only:
        return []
    if not cfg.parallel_attn_mlp:
        return _added(this, this.at("hook_resid_mid"), "hook_mlp_out", after, "ln2_post", "the MLP adds")
    parts = {"stream": "hook_resid_pre", "attention adds": "hook_attn_out", "the MLP adds": "hook_mlp_out"}
    end = replace(this.hooked("stream after", after), formula="their sum")
    return [
        *(
            replace(
                this.hooked(name, this.at(hook)), formula="what was written" if "adds" in name else "the stream before"
            )
            for name, hook in parts.items()
        ),
        end,
    ]


def _final_norm(this: Walk, _: int) -> list[Quantity]:
    if isinstance(this.model.ln_final, NoNorm):
        return []
    return [this.hooked("stream", this.end), *this.through("ln_final", "what is read off")]


def _logits(this: Walk, _: int) -> list[Quantity]:
    last = (_final_norm(this, 0) or [this.hooked("stream", this.end)])[-1]
    n, cap = this.tokens.shape[1], this.model.cfg.output_logits_soft_cap
    bias, capped = "" if this.model.unembed.b_U is None else " + b_U", "" if cap is None else f", capped at ±{cap:g}"
    code = f"model(tokens)[0, {this.pos}]"
    axes, shape = ("pos", "d_vocab_out"), (n, len(this.logits))
    hook = "unembed.hook_out" if cap is None else None
    return [last, Quantity("logits", f"what is read off × W_U{bias}{capped}", axes, shape, this.logits, code, hook)]


STAGES: dict[str, Callable[[Walk, int], list[Quantity]]] = {
    "embedding": _embedding,
    "position": _position,
    "attention norm": _attn_norm,
    "q, k, v": _qkv,
    "turn": _turn,
    "scores": _scores,
    "scaling": _scaling,
    "mask": _mask,
    "softmax": _softmax,
    "values": _mix,
    "heads": _heads,
    "attention added": _attn_added,
    "mlp norm": _mlp_norm,
    "expand": _expand,
    "activation": _activation,
    "contract": _contract,
    "mlp added": _mlp_added,
    "final norm": _final_norm,
    "logits": _logits,
}
