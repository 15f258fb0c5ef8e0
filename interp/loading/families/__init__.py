"""Outside model families, one small file each: their configuration and names in ours.

A family has `config(hf)`, a GPTConfig's fields from a Hugging Face `config.json`; `to_hf(cfg)`, these back;
`sources(cfg)`, where each parameter comes from and goes; `PREFIX`, which a checkpoint of the bare model leaves out; and
`IGNORED`, name endings that hold no weight.
"""

from types import ModuleType

from interp.loading.families import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    mistral,
    mpt,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
)

FAMILIES: dict[str, ModuleType] = {
    "bloom": bloom,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "llama": llama,
    "mistral": mistral,
    "mpt": mpt,
    "olmo2": olmo2,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm3": smollm3,
    "stablelm": stablelm,
}
