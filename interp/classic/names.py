"""The classic names of checkpoints, and what they are called on the hub: those whose kind is known here."""

_OF: dict[str, tuple[str, ...]] = {  # owner: names; a name is known without its owner, too, in capitals or not
    "": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"),
    "stanford-crfm": (
        "alias-gpt2-small-x21", "battlestar-gpt2-small-x49", "caprica-gpt2-small-x81", "darkmatter-gpt2-small-x343",
        "expanse-gpt2-small-x777", "arwen-gpt2-medium-x21", "beren-gpt2-medium-x49", "celebrimbor-gpt2-medium-x81",
        "durin-gpt2-medium-x343", "eowyn-gpt2-medium-x777",
    ),
    "EleutherAI": (
        "gpt-neo-125M", "gpt-neo-1.3B", "gpt-neo-2.7B", "gpt-j-6B", "gpt-neox-20b", "pythia-14m", "pythia-31m",
        *(
            f"pythia-{size}{kind}{version}"
            for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
            for kind in ("", "-deduped")
            for version in ("", "-v0")
        ),
        *(f"pythia-160m-seed{seed}" for seed in (1, 2, 3)),
    ),
    "roneneldan": (
        *(f"TinyStories-{size}" for size in ("1M", "3M", "8M", "28M", "33M", "1Layer-21M", "2Layers-33M")),
        *(f"TinyStories-Instruct-{size}" for size in ("1M", "3M", "8M", "28M", "33M", "2Layers-33M")),
        "TinyStories-Instuct-1Layer-21M",
    ),
    "facebook": tuple(f"opt-{size}" for size in ("125m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")),
    "microsoft": ("phi-1", "phi-1_5", "phi-2"),
    "meta-llama": (
        *(f"Llama-2-{size}{kind}-hf" for size in ("7b", "13b", "70b") for kind in ("", "-chat")),
        *(f"Meta-Llama-3-{size}{kind}" for size in ("8B", "70B") for kind in ("", "-Instruct")),
        *(f"Llama-3.1-{size}{kind}" for size in ("8B", "70B") for kind in ("", "-Instruct")),
        *(f"Llama-3.2-{size}{kind}" for size in ("1B", "3B") for kind in ("", "-Instruct")),
        "Llama-3.3-70B-Instruct",
    ),
    "mistralai": (
        "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "Mistral-Nemo-Base-2407", "Mistral-Small-24B-Base-2501",
    ),
    "google": tuple(f"gemma-2-{size}{kind}" for size in ("2b", "9b", "27b") for kind in ("", "-it")),
    "allenai": ("OLMo-2-0425-1B", "OLMo-2-1124-7B"),
    "Qwen": (
        *(f"Qwen1.5-{size}{kind}" for size in ("0.5B", "1.8B", "4B", "7B", "14B") for kind in ("", "-Chat")),
        *(f"Qwen2-{size}{kind}" for size in ("0.5B", "1.5B", "7B") for kind in ("", "-Instruct")),
        *(
            f"Qwen2.5-{size}{kind}"
            for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
            for kind in ("", "-Instruct")
        ),
        *(f"Qwen3-{size}" for size in ("0.6B", "0.6B-Base", "1.7B", "4B", "8B", "14B")),
    ),
    "NeelNanda": (
        *(f"{kind}_{n}L512W_C4_Code" for kind in ("Attn_Only", "GELU", "SoLU") for n in (1, 2, 3, 4)),
        "SoLU_6L768W_C4_Code", "SoLU_8L1024W_C4_Code", "SoLU_10L1280W_C4_Code", "SoLU_12L1536W_C4_Code",
        "SoLU_1L512W_Wiki_Finetune", "SoLU_4L512W_Wiki_Finetune", "Attn-Only-2L512W-Shortformer-6B-big-lr",
    ),
    "ArthurConmy": ("redwood_attn_2l",),
}  # fmt: skip
TOYS = ("NeelNanda/", "ArthurConmy/")  # owners of checkpoints in the classic layout
OFFICIAL_MODEL_NAMES = [f"{owner}/{name}" if owner else name for owner, names in _OF.items() for name in names]

_MORE = {
    "gpt2": ["gpt2-small"],
    "distilgpt2": ["distillgpt2", "distill-gpt2", "distil-gpt2", "gpt2-xs"],
    "EleutherAI/gpt-neo-125M": ["gpt-neo-small", "neo-small", "neo"],
    "EleutherAI/gpt-neo-1.3B": ["gpt-neo-medium", "neo-medium"],
    "EleutherAI/gpt-neo-2.7B": ["gpt-neo-large", "neo-large"],
    "EleutherAI/gpt-j-6B": ["gpt-j", "gptj"],
    "EleutherAI/gpt-neox-20b": ["gpt-neox", "neox"],
    "EleutherAI/pythia-70m": ["pythia"],
    "EleutherAI/pythia-70m-v0": ["pythia-v0"],
    "facebook/opt-125m": ["opt"],
    "meta-llama/Llama-2-70b-chat-hf": ["meta-llama-2-70b-chat-hf"],
    "mistralai/Mistral-7B-v0.1": ["mistral-7b"],
    "mistralai/Mistral-7B-Instruct-v0.1": ["mistral-7b-instruct"],
    "allenai/OLMo-2-0425-1B": ["olmo-2-1b"],
    "allenai/OLMo-2-1124-7B": ["olmo-2-7b"],
    "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr": [
        "attn-only-2l-demo", "attn-only-2l-shortformer-6b-big-lr", "attn-only-2l-induction-demo", "attn-only-demo",
    ],
}  # fmt: skip
_OPT = ("small", "medium", "large", "xl", "xxl", "xxxl", "xxxxl")
_PYTHIA_ONCE = {
    "70m": "19m", "160m": "125m", "410m": "350m", "1b": "800m", "1.4b": "1.3b", "2.8b": "2.7b", "6.9b": "6.7b",
    "12b": "13b",
}  # fmt: skip


def _aliases(official: str) -> list[str]:
    """What a checkpoint is called besides its name on the hub."""
    owner, _, name = official.rpartition("/")
    found = [name, *_MORE.get(official, ())]
    if owner == "EleutherAI" and name.startswith("pythia-"):
        _, size, *rest = name.split("-")
        once = "-".join(("pythia", _PYTHIA_ONCE.get(size, size), *rest))
        found += [once, f"EleutherAI/{once}"]
    if owner == "facebook":
        found += [f"opt-{_OPT[_OF['facebook'].index(name)]}"]
    if owner == "stanford-crfm":
        size, letter = name.split("-")[2], "abcde"[("x21", "x49", "x81", "x343", "x777").index(name.split("-")[-1])]
        found += [f"stanford-gpt2-{size}-{letter}", f"gpt2-stanford-{size}-{letter}"]
        found += [f"gpt2-mistral-small-{letter}" if size == "small" else f"gpt2-medium-small-{letter}"]
    if owner == "roneneldan":
        plain = name.replace("Instuct", "Instruct").replace("1Layer", "1L").replace("2Layers", "2L")
        found += [plain.replace("TinyStories", "tiny-stories")]
    if owner == "meta-llama" and name.endswith("-hf"):
        found += [name.removesuffix("-hf")]
    if owner == "NeelNanda" and "Shortformer" not in name:
        kind, _, what = name.replace("Attn_Only", "attn-only").partition("_")
        short = f"{kind.lower()}-{what.partition('L')[0]}l"
        ends = ("", "-new", "-c4-code") if name.endswith("_C4_Code") else ("-wiki", "-wiki-finetune", "-finetune")
        found += [short + end for end in ends]
    return found


MODEL_ALIASES = {official: _aliases(official) for official in OFFICIAL_MODEL_NAMES}
DEFAULT_MODEL_ALIASES = [aliases[0] for aliases in MODEL_ALIASES.values()]


def make_model_alias_map() -> dict[str, str]:
    """Every name in small letters, and the name on the hub that it means."""
    found = {alias.lower(): official for official, aliases in MODEL_ALIASES.items() for alias in aliases}
    return found | {official.lower(): official for official in OFFICIAL_MODEL_NAMES}


_NAMES = make_model_alias_map()


_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel", "distilgpt2": "GPT2LMHeadModel", "stanford-crfm": "GPT2LMHeadModel",
    "EleutherAI/gpt-neo-": "GPTNeoForCausalLM", "roneneldan": "GPTNeoForCausalLM",
    "EleutherAI/gpt-j": "GPTJForCausalLM", "EleutherAI": "GPTNeoXForCausalLM", "facebook/opt": "OPTForCausalLM",
    "microsoft/phi": "PhiForCausalLM", "meta-llama": "LlamaForCausalLM", "mistralai": "MistralForCausalLM",
    "google/gemma-2": "Gemma2ForCausalLM", "allenai/OLMo-2": "Olmo2ForCausalLM", "Qwen/Qwen3": "Qwen3ForCausalLM",
    "Qwen": "Qwen2ForCausalLM", "NeelNanda": "neel",
}  # fmt: skip


def architecture(official: str) -> str | None:
    """What kind of model a name on the hub says it is."""
    return next((kind for start, kind in _ARCHITECTURES.items() if official.startswith(start)), None)


def official_name(name: str) -> str:
    """The name on the hub that a classic name means; any other name, or folder, as it is."""
    return _NAMES.get(name.lower(), name)
