"""Transformer blocks: what is read from the residual stream, and what is added to it."""

from jaxtyping import Float
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint, is_heard, is_touched, replayed
from interp.model.attention import HeadInputs, Pass, Written, attention
from interp.model.mlp import MLP, GatedMLP
from interp.model.norms import LayerNorm, Norm, norm

Stream = Float[Tensor, "batch pos d_model"]


def add_output(resid: Stream, out: Stream, out_norm: nn.Module, hook: HookPoint) -> Stream:
    """x + norm(f(x)); without a norm on outputs, x + f(x)."""
    return resid + hook(out_norm(out))


def add_then_norm(resid: Stream, out: Stream, sum_norm: nn.Module, hook: HookPoint) -> Stream:
    """norm(x + f(x)), as in 2017."""
    return sum_norm(resid + hook(out))


class AttentionBlock(nn.Module):
    """Attention alone: resid_post = resid_pre + attn_out. The other blocks build on it."""

    def __init__(self, cfg: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = norm(cfg, exists=cfg.norm_position in ("pre", "both"))
        self.attn = attention(cfg, layer)
        self.ln1_post = norm(cfg, exists=cfg.norm_position != "pre")
        self.add = add_then_norm if cfg.norm_position == "post" else add_output

        self.hook_resid_pre = HookPoint("batch pos d_model", "the stream before the block")
        self.hook_q_input = HookPoint(
            "batch pos head d_model", "the stream as each head's queries read it", on_demand=True
        )
        self.hook_k_input = HookPoint(
            "batch pos kv_head d_model", "the stream as each head's keys read it", on_demand=True
        )
        self.hook_v_input = HookPoint(
            "batch pos kv_head d_model", "the stream as each head's values read it", on_demand=True
        )
        self.split_points: tuple[HookPoint, ...] = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not cfg.has_grouped_queries:
            self.hook_attn_in = HookPoint("batch pos head d_model", "the stream as each head reads it", on_demand=True)
            self.split_points = (self.hook_attn_in, *self.split_points)
        self.hook_attn_out = HookPoint(
            "batch pos d_model", "what attention adds: sum over heads of result + b_O, then ln1_post where there is one"
        )
        self.hook_resid_post = HookPoint("batch pos d_model", "the stream after the block")

    def forward(self, resid_pre: Stream, this: Pass) -> Written:
        """The stream after the block. Run again by activation checkpointing, it has the hooks of its call again."""
        if this.hooks is None:
            return self.run(resid_pre, this)
        with replayed(this.hooks):
            return self.run(resid_pre, this)

    def run(self, resid_pre: Stream, this: Pass) -> Written:
        resid_pre = self.hook_resid_pre(resid_pre)
        attn = self.attn(self.attn_reads(resid_pre), this)
        return self.hook_resid_post(self.add(this.goes_on(resid_pre), attn, self.ln1_post, self.hook_attn_out))

    def attn_reads(self, resid_pre: Stream) -> Stream | HeadInputs:
        """The stream after ln1; while somebody listens to the heads' inputs, one for each head."""
        if not is_heard(*self.split_points):
            return self.ln1(resid_pre)
        self.refuse_hooks_on_ln1(*self.split_points)
        if is_heard(*_points(self.ln1)):
            self.ln1(resid_pre)  # for those who record it: heads are normed each by its own divisor below
        q_in, k_in, v_in = self.head_inputs(resid_pre[..., None, :])
        norm_of = self.ln1.unheard
        return (
            norm_of(self.hook_q_input(q_in)),
            norm_of(self.hook_k_input(k_in)),
            norm_of(self.hook_v_input(v_in)),
        )

    def head_inputs(self, resid_pre: Float[Tensor, "batch pos 1 d_model"]) -> HeadInputs:
        n_heads, n_kv_heads = self.attn.cfg.n_heads, self.attn.cfg.n_key_value_heads
        every = resid_pre.expand(-1, -1, n_heads, -1)
        if n_heads != n_kv_heads:
            groups = resid_pre.expand(-1, -1, n_kv_heads, -1)
            return every, groups, groups
        attn_in = self.hook_attn_in(every)
        return attn_in, attn_in, attn_in

    def refuse_hooks_on_ln1(self, *points: HookPoint) -> None:
        """What is read apart has a norm of its own, which an edit or a gradient at ln1 would miss."""
        if touched := [point.name for point in _points(self.ln1) if is_touched(point)]:
            raise ValueError(
                f"{touched} cannot be edited or differentiated in a call that listens to "
                f"{[point.name for point in points if is_heard(point)]}: "
                "inputs read apart are normed apart; make two calls"
            )


class Block(AttentionBlock):
    """Attention, then the MLP, which reads what attention wrote."""

    def __init__(self, cfg: GPTConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.hook_resid_mid = HookPoint("batch pos d_model", "the stream between attention and MLP")
        self.hook_mlp_in = HookPoint("batch pos d_model", "the stream as the MLP reads it", on_demand=True)
        self.ln2 = norm(cfg, exists=cfg.norm_position in ("pre", "both"))
        self.mlp = GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
        self.ln2_post = norm(cfg, exists=cfg.norm_position != "pre")
        self.hook_mlp_out = HookPoint(
            "batch pos d_model", "what the MLP adds: post W_out + b_out, then ln2_post where there is one"
        )

    def run(self, resid_pre: Stream, this: Pass) -> Written:
        resid_pre = self.hook_resid_pre(resid_pre)
        attn = self.attn(self.attn_reads(resid_pre), this)
        resid_mid = self.hook_resid_mid(self.add(this.goes_on(resid_pre), attn, self.ln1_post, self.hook_attn_out))
        mlp = self.mlp(self.ln2(self.hook_mlp_in(resid_mid)))
        return self.hook_resid_post(self.add(resid_mid, mlp, self.ln2_post, self.hook_mlp_out))


class ParallelBlock(AttentionBlock):
    """Attention and MLP side by side: both read resid_pre, each through a norm of its own (GPT-NeoX)."""

    def __init__(self, cfg: GPTConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.hook_mlp_in = HookPoint("batch pos d_model", "the stream as the MLP reads it", on_demand=True)
        self.ln2 = norm(cfg, exists=not cfg.parallel_shared_norm)
        self.mlp = GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
        self.hook_mlp_out = HookPoint(
            "batch pos d_model", "what the MLP adds: post W_out + b_out, then ln2_post where there is one"
        )

    def run(self, resid_pre: Stream, this: Pass) -> Written:
        resid_pre = self.hook_resid_pre(resid_pre)
        reads = self.attn_reads(resid_pre)
        attn_out = self.hook_attn_out(self.attn(reads, this))
        resid_pre, reads = this.goes_on(resid_pre), this.goes_on(reads) if isinstance(reads, Tensor) else reads
        mlp_out = self.hook_mlp_out(self.mlp(self.mlp_reads(resid_pre, reads)))
        return self.hook_resid_post(resid_pre + attn_out + mlp_out)

    def mlp_reads(self, resid_pre: Stream, attn_reads: Stream | HeadInputs) -> Stream:
        return self.ln2(self.hook_mlp_in(resid_pre))


class SharedNormBlock(ParallelBlock):
    """Attention and MLP side by side behind one norm (GPT-J)."""

    def mlp_reads(self, resid_pre: Stream, attn_reads: Stream | HeadInputs) -> Stream:
        if is_heard(self.hook_mlp_in):
            self.refuse_hooks_on_ln1(self.hook_mlp_in)
            return self.ln1.unheard(self.hook_mlp_in(resid_pre))
        return attn_reads if isinstance(attn_reads, Tensor) else self.ln1.unheard(resid_pre)


def block(cfg: GPTConfig, layer: int) -> AttentionBlock:
    """The block that the configuration asks for."""
    if cfg.attn_only:
        return AttentionBlock(cfg, layer)
    if not cfg.parallel_attn_mlp:
        return Block(cfg, layer)
    return SharedNormBlock(cfg, layer) if cfg.parallel_shared_norm else ParallelBlock(cfg, layer)


def _points(some_norm: Norm) -> list[HookPoint]:
    return [some_norm.hook_scale, some_norm.hook_normalized] if isinstance(some_norm, LayerNorm) else []
