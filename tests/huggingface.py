"""Random models of `transformers`, and their weights in ours."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interp import GPTConfig, HookedGPT


def random_weights(model: nn.Module) -> nn.Module:
    """Weights large enough that every part matters, biases and gains included."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + 0.2 * noise if "norm" in name or "ln_" in name else 0.2 * noise)
    return model.eval()


def hf_gpt2(**sizes: Any) -> GPT2LMHeadModel:
    sizes = {"n_layer": 3, "n_embd": 20, "n_head": 4, "n_inner": 33, "vocab_size": 31, "n_positions": 17} | sizes
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()


def hf_llama(**sizes: Any) -> LlamaForCausalLM:
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 20,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 27,
        "vocab_size": 31,
        "max_position_embeddings": 17,
        "rms_norm_eps": 1e-5,
    } | sizes
    return LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None)).eval()


def from_gpt2(theirs: GPT2LMHeadModel) -> HookedGPT:
    c = theirs.config
    model = HookedGPT(
        GPTConfig(
            n_layers=c.n_layer,
            d_model=c.n_embd,
            n_heads=c.n_head,
            d_mlp=c.n_inner or 4 * c.n_embd,
            d_vocab=c.vocab_size,
            n_ctx=c.n_positions,
            act_fn="gelu_new",
            tie_word_embeddings=True,
        )
    ).eval()
    with torch.no_grad():
        for target, source in paired_with_gpt2(model, theirs):
            target.copy_(source)
    return model.to(theirs.dtype)


def paired_with_gpt2(model: HookedGPT, theirs: GPT2LMHeadModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each parameter of ours beside the tensor of theirs that means the same, in our layout."""
    t = theirs.transformer
    pairs = [(model.embed.W_E, t.wte.weight), (model.pos_embed.W_pos, t.wpe.weight)]
    pairs += [(model.ln_final.w, t.ln_f.weight), (model.ln_final.b, t.ln_f.bias)]
    for block, h in zip(model.blocks, t.h, strict=True):
        pairs += [(block.ln1.w, h.ln_1.weight), (block.ln1.b, h.ln_1.bias)]
        pairs += [(block.ln2.w, h.ln_2.weight), (block.ln2.b, h.ln_2.bias)]
        for ours, conv in (
            (block.attn.qkv, h.attn.c_attn),
            (block.attn.out, h.attn.c_proj),
            (block.mlp.up, h.mlp.c_fc),
            (block.mlp.down, h.mlp.c_proj),
        ):
            pairs += [(ours.weight, conv.weight.T), (ours.bias, conv.bias)]
    return pairs


def from_llama(theirs: LlamaForCausalLM) -> HookedGPT:
    c = theirs.config
    model = HookedGPT(
        GPTConfig(
            n_layers=c.num_hidden_layers,
            d_model=c.hidden_size,
            n_heads=c.num_attention_heads,
            n_key_value_heads=c.num_key_value_heads,
            d_head=c.head_dim,
            d_mlp=c.intermediate_size,
            d_vocab=c.vocab_size,
            n_ctx=c.max_position_embeddings,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            eps=c.rms_norm_eps,
            positional_embedding_type="rotary",
            bias_qkv=False,
            bias_attn_out=False,
            bias_mlp=False,
        )
    ).eval()
    with torch.no_grad():
        for target, source in paired_with_llama(model, theirs):
            target.copy_(source)
    return model.to(theirs.dtype)


def paired_with_llama(model: HookedGPT, theirs: LlamaForCausalLM) -> list[tuple[torch.Tensor, torch.Tensor]]:
    t = theirs.model
    pairs = [(model.embed.W_E, t.embed_tokens.weight), (model.unembed.weight, theirs.lm_head.weight)]
    pairs += [(model.ln_final.w, t.norm.weight)]
    for block, h in zip(model.blocks, t.layers, strict=True):
        a = h.self_attn
        n_q, n_kv = a.q_proj.weight.shape[0], a.k_proj.weight.shape[0]
        rows = block.attn.qkv.weight
        q, k, v = rows[:n_q], rows[n_q : n_q + n_kv], rows[n_q + n_kv :]
        pairs += [
            (q, a.q_proj.weight),
            (k, a.k_proj.weight),
            (v, a.v_proj.weight),
            (block.attn.out.weight, a.o_proj.weight),
        ]
        pairs += [(block.mlp.gate.weight, h.mlp.gate_proj.weight), (block.mlp.up.weight, h.mlp.up_proj.weight)]
        pairs += [(block.mlp.down.weight, h.mlp.down_proj.weight)]
        pairs += [(block.ln1.w, h.input_layernorm.weight), (block.ln2.w, h.post_attention_layernorm.weight)]
    return pairs
