"""The network written out literally, a head at a time, every quantity explicit: slow, and apart from `interp.model`.

It reads a model's configuration and its weights by their names in the theory, computes in the dtype of those weights,
and knows an activation by its hook name, so that an edit here says what an edit of the hook point must do.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from interp import HookedGPT

Edits = dict[str, Callable[[Tensor], Tensor]]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "solu": lambda x: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
}


ALIBI_3 = (2**-4, 2**-8, 2**-2)  # the slopes of three heads


class Reference:
    """One pass over `tokens`; afterwards `values` holds every activation in order, and `logits` the end."""

    def __init__(
        self, model: HookedGPT, tokens: Tensor, mask: Tensor | None = None, edits: Edits | None = None
    ) -> None:
        self.model, self.cfg = model, model.cfg
        self.edits = edits or {}
        self.values: dict[str, Tensor] = {}
        n_rows, n_pos = tokens.shape
        self.mask = torch.ones(n_rows, n_pos, dtype=torch.bool) if mask is None else mask.bool()
        self.place = torch.zeros(n_rows, n_pos, dtype=torch.long)
        for row in range(n_rows):
            real = 0
            for pos in range(n_pos):
                real += int(self.mask[row, pos])
                self.place[row, pos] = max(real - 1, 0)
        self.logits = self.run(tokens)

    def hook(self, name: str, x: Tensor) -> Tensor:
        x = self.edits[name](x) if name in self.edits else x
        self.values[name] = x
        return x

    def run(self, tokens: Tensor) -> Tensor:
        cfg, model = self.cfg, self.model
        embed = cfg.embed_scale * model.W_E[tokens]
        embed = self.norm("embed.ln", model.embed.ln, embed) if cfg.embed_norm else embed
        resid = self.hook("hook_embed", embed)
        self.beside = torch.zeros_like(resid)
        if cfg.positional_embedding_type == "shortformer":
            self.beside = self.hook("hook_pos_embed", model.W_pos[self.place])
        if cfg.positional_embedding_type == "standard":
            resid = resid + self.hook("hook_pos_embed", model.W_pos[self.place])
        if cfg.positional_embedding_type == "sinusoidal":
            resid = resid + self.hook("hook_pos_embed", self.waves(resid))
        for layer in range(cfg.n_layers):
            resid = self.block(layer, resid)
        final = resid if cfg.norm_position == "post" else self.norm("ln_final", model.ln_final, resid)
        final = self.hook("unembed.hook_in", final)
        logits = self.hook("unembed.hook_out", final @ model.W_U + model.b_U)
        return logits if cfg.output_logits_soft_cap is None else self.capped(logits, cfg.output_logits_soft_cap)

    def capped(self, x: Tensor, cap: float) -> Tensor:
        return cap * (1 - 2 / (torch.exp(2 * x / cap) + 1))

    def waves(self, like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        for i in range(self.cfg.d_model):
            angle = self.place.to(like.dtype) / 10_000 ** ((i - i % 2) / self.cfg.d_model)
            out[..., i] = torch.sin(angle) if i % 2 == 0 else torch.cos(angle)
        return out

    def norm(self, name: str, module: object, x: Tensor, silent: bool = False, kind: str | None = "") -> Tensor:
        kind = self.cfg.normalization_type if kind == "" else kind
        if kind is None:
            return x
        hook = (lambda _, value: value) if silent else self.hook
        if kind.startswith("LN"):
            x = x - x.mean(-1, keepdim=True)
        scale = hook(f"{name}.hook_scale", torch.sqrt((x**2).mean(-1, keepdim=True) + self.cfg.eps))
        x = hook(f"{name}.hook_normalized", x / scale)
        w, b = getattr(module, "w", None), getattr(module, "b", None)
        x = x if w is None else x * w
        return x if b is None else x + b

    def block(self, layer: int, resid_pre: Tensor) -> Tensor:
        cfg, block, name = self.cfg, self.model.blocks[layer], f"blocks.{layer}"
        pre = cfg.norm_position in ("pre", "both")
        outer = cfg.norm_position in ("output", "both")
        post = cfg.norm_position == "post"
        resid_pre = self.hook(f"{name}.hook_resid_pre", resid_pre)
        normed = self.norm(f"{name}.ln1", block.ln1, resid_pre) if pre else resid_pre
        attn = self.attention(layer, resid_pre, normed)
        attn = self.norm(f"{name}.ln1_post", block.ln1_post, attn) if outer else attn
        attn_out = self.hook(f"{name}.hook_attn_out", attn)
        if cfg.attn_only:
            total = resid_pre + attn_out
            total = self.norm(f"{name}.ln1_post", block.ln1_post, total) if post else total
            return self.hook(f"{name}.hook_resid_post", total)
        if cfg.parallel_attn_mlp:
            mlp_in = self.hook(f"{name}.hook_mlp_in", resid_pre)
            if cfg.parallel_shared_norm:
                apart = f"{name}.hook_mlp_in" in self.edits
                x = self.norm(f"{name}.ln1", block.ln1, mlp_in, silent=True) if apart else normed
            else:
                x = self.norm(f"{name}.ln2", block.ln2, mlp_in)
            mlp_out = self.hook(f"{name}.hook_mlp_out", self.mlp(layer, x))
            return self.hook(f"{name}.hook_resid_post", resid_pre + attn_out + mlp_out)
        resid_mid = resid_pre + attn_out
        resid_mid = self.norm(f"{name}.ln1_post", block.ln1_post, resid_mid) if post else resid_mid
        resid_mid = self.hook(f"{name}.hook_resid_mid", resid_mid)
        mlp_in = self.hook(f"{name}.hook_mlp_in", resid_mid)
        mlp = self.mlp(layer, self.norm(f"{name}.ln2", block.ln2, mlp_in) if pre else mlp_in)
        mlp = self.norm(f"{name}.ln2_post", block.ln2_post, mlp) if outer else mlp
        mlp_out = self.hook(f"{name}.hook_mlp_out", mlp)
        resid_post = resid_mid + mlp_out
        resid_post = self.norm(f"{name}.ln2_post", block.ln2_post, resid_post) if post else resid_post
        return self.hook(f"{name}.hook_resid_post", resid_post)

    def attention(self, layer: int, resid_pre: Tensor, normed: Tensor) -> Tensor:
        cfg, block, name = self.cfg, self.model.blocks[layer], f"blocks.{layer}"
        n_heads, n_kv = cfg.n_heads, cfg.n_key_value_heads
        attn = block.attn
        every = resid_pre[:, :, None].repeat(1, 1, n_heads, 1)
        if n_heads == n_kv:
            every = self.hook(f"{name}.hook_attn_in", every)
        inputs = {"q": every, "k": every[:, :, :n_kv], "v": every[:, :, :n_kv]}
        inputs = {x: self.hook(f"{name}.hook_{x}_input", value) for x, value in inputs.items()}
        apart = any(f"{name}.hook_{point}" in self.edits for point in ("attn_in", "q_input", "k_input", "v_input"))
        heads = {}
        for x, W, b in (("q", attn.W_Q, attn.b_Q), ("k", attn.W_K, attn.b_K), ("v", attn.W_V, attn.b_V)):
            columns = []
            for head in range(len(W)):
                read = normed
                if apart:
                    read = inputs[x][:, :, head]
                    if cfg.norm_position in ("pre", "both"):
                        read = self.norm(f"{name}.ln1", block.ln1, read, silent=True)
                read = read if x == "v" else read + self.beside
                column = read @ W[head] + (0 if b is None else b[head])
                columns.append(column if cfg.qkv_clip is None else self.within(column, cfg.qkv_clip))
            heads[x] = self.hook(f"{name}.attn.hook_{x}", torch.stack(columns, 2))
        q, k, v = heads["q"], heads["k"], heads["v"]
        if cfg.use_qk_norm:
            q = self.head_norm(f"{name}.attn.q_norm", attn.q_norm.w, q)
            k = self.head_norm(f"{name}.attn.k_norm", attn.k_norm.w, k)
        is_local = bool(cfg.window_size) and (cfg.attn_types is None or cfg.attn_types[layer] == "local")
        if cfg.positional_embedding_type == "rotary" and (cfg.rotary_layers is None or cfg.rotary_layers[layer]):
            q = self.hook(f"{name}.attn.hook_rot_q", self.turned(q, is_local))
            k = self.hook(f"{name}.attn.hook_rot_k", self.turned(k, is_local))
        n_rows, n_pos = q.shape[:2]
        scores = []
        for head in range(n_heads):
            kv = head // (n_heads // n_kv)
            s = torch.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, kv]) / cfg.attn_scale
            s = s if cfg.attn_scores_soft_cap is None else self.capped(s, cfg.attn_scores_soft_cap)
            if cfg.positional_embedding_type == "alibi":
                apart = self.place[:, :, None] - self.place[:, None, :]
                s = s - ALIBI_3[head] * apart
            allowed = torch.zeros(n_rows, n_pos, n_pos, dtype=torch.bool)
            for row in range(n_rows):
                for i in range(n_pos):
                    for j in range(n_pos):
                        seen = self.mask[row, i] and self.mask[row, j]
                        seen = seen and (j <= i or cfg.attention_dir == "bidirectional")
                        if is_local:
                            seen = seen and i - j < cfg.window_size
                        allowed[row, i, j] = bool(seen) or i == j
            scores.append(torch.where(allowed, s, torch.full_like(s, -math.inf)))
        scores = self.hook(f"{name}.attn.hook_attn_scores", torch.stack(scores, 1))
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        pattern = self.hook(f"{name}.attn.hook_pattern", weights / weights.sum(-1, keepdim=True))
        mixed = [torch.einsum("bqk,bkd->bqd", pattern[:, h], v[:, :, h // (n_heads // n_kv)]) for h in range(n_heads)]
        z = self.hook(f"{name}.attn.hook_z", torch.stack(mixed, 2))
        result = torch.stack([z[:, :, h] @ attn.W_O[h] for h in range(n_heads)], 2)
        result = self.hook(f"{name}.attn.hook_result", result)
        return sum(result[:, :, h] for h in range(n_heads)) + (0 if attn.b_O is None else attn.b_O)

    def head_norm(self, name: str, w: Tensor, x: Tensor) -> Tensor:
        over = (2, 3) if self.cfg.qk_norm_over_width else 3
        x = x - x.mean(-1, keepdim=True) if self.cfg.qk_layer_norm else x
        scale = self.hook(f"{name}.hook_scale", torch.sqrt((x**2).mean(over, keepdim=True) + self.cfg.eps))
        return self.hook(f"{name}.hook_normalized", x / scale) * w

    def within(self, x: Tensor, bound: float) -> Tensor:
        return torch.where(x > bound, bound, torch.where(x < -bound, -bound, x))

    def slowed(self, frequency: float) -> float:
        scaling = self.cfg.rope_scaling
        if scaling is None:
            return frequency
        wavelength = 2 * math.pi / frequency
        if scaling.kind == "linear" or wavelength > scaling.original_n_ctx / scaling.low_freq_factor:
            return frequency / scaling.factor
        if wavelength < scaling.original_n_ctx / scaling.high_freq_factor:
            return frequency
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        smooth = (scaling.original_n_ctx / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / scaling.factor + smooth * frequency

    def turned(self, x: Tensor, is_local: bool) -> Tensor:
        """Each pair of coordinates as a complex number, multiplied by exp(i · angle)."""
        cfg = self.cfg
        out = x.clone()
        n_pairs = cfg.rotary_dim // 2
        for pair in range(n_pairs):
            a, b = (2 * pair, 2 * pair + 1) if cfg.rotary_adjacent_pairs else (pair, pair + n_pairs)
            if is_local and cfg.local_rotary_base is not None:
                frequency = cfg.local_rotary_base ** (-2 * pair / cfg.rotary_dim)
            else:
                frequency = self.slowed(cfg.rotary_base ** (-2 * pair / cfg.rotary_dim))
            angle = self.place.to(x.dtype) * frequency
            turned = torch.complex(x[..., a], x[..., b]) * torch.exp(1j * angle)[..., None]
            out = torch.cat((out[..., :a], turned.real[..., None], out[..., a + 1 :]), -1)
            out = torch.cat((out[..., :b], turned.imag[..., None], out[..., b + 1 :]), -1)
        return out

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        cfg, mlp, name = self.cfg, self.model.blocks[layer].mlp, f"blocks.{layer}.mlp"
        linear = x @ mlp.W_in + (0 if mlp.b_in is None else mlp.b_in)
        if cfg.gated_mlp:
            gate = ACTIVATIONS[cfg.act_fn](self.hook(f"{name}.hook_pre", x @ mlp.W_gate))
            post = gate * self.hook(f"{name}.hook_pre_linear", linear)
        elif cfg.act_fn == "solu_ln":
            mid = self.hook(f"{name}.hook_mid", ACTIVATIONS["solu"](self.hook(f"{name}.hook_pre", linear)))
            post = self.norm(f"{name}.ln", mlp.ln, mid, kind="LN")
        else:
            post = ACTIVATIONS[cfg.act_fn](self.hook(f"{name}.hook_pre", linear))
        post = self.hook(f"{name}.hook_post", post)
        return post @ mlp.W_out + (0 if mlp.b_out is None else mlp.b_out)
