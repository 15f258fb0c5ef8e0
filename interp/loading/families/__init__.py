"""Outside model families, one small file each: their configuration and names in ours.

A family has `config(hf)`, a GPTConfig's fields from a Hugging Face `config.json`; `sources(cfg)`, where each parameter
comes from; `PREFIX`, which a checkpoint of the bare model leaves out; and `IGNORED`, name endings that hold no weight.
"""

from types import ModuleType

from interp.loading.families import gemma2, gpt2, gpt_neo, gpt_neox, gptj, llama, mistral, olmo2, opt, phi, qwen2, qwen3

FAMILIES: dict[str, ModuleType] = {
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "llama": llama,
    "mistral": mistral,
    "olmo2": olmo2,
    "opt": opt,
    "phi": phi,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
