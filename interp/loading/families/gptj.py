"""GPT-J: attention and MLP side by side behind one norm; rotary positions in adjacent pairs."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families import gpt2
from interp.loading.families.common import LM_HEAD, Config, read, sources_of, written

PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")
NAMES = gpt2.NAMES | {"rotary_dim": "rotary_dim"}
TOP = {"embed": "transformer.wte", "ln_final": "transformer.ln_f", "unembed": LM_HEAD}
BLOCK = {
    "ln1": "ln_1",
    "attn.qkv": tuple(f"attn.{part}_proj" for part in "qkv"),
    "attn.out": "attn.out_proj",
    "mlp.up": "mlp.fc_in",
    "mlp.down": "mlp.fc_out",
}


def config(hf: Config) -> Config:
    defaults = gpt2.DEFAULTS | {"tie_word_embeddings": False, "rotary_dim": hf["n_embd"] // hf["n_head"]}
    return {
        **read(hf, NAMES, **defaults, n_inner=4 * hf["n_embd"]),
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
        "bias_qkv": False,
        "bias_attn_out": False,
        "bias_unembed": True,
    }


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES)


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "transformer.h", BLOCK)
