"""GPTConfig: every choice that makes one transformer differ from another, checked once."""

from dataclasses import MISSING, asdict, dataclass, fields
from math import sqrt
from typing import Any, Literal, get_args, get_type_hints

import torch

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "solu", "solu_ln"]
Normalization = Literal["LN", "LNPre", "RMS", "RMSPre"]
NormPosition = Literal["pre", "post", "output", "both"]
PositionalEmbedding = Literal["standard", "sinusoidal", "shortformer", "rotary", "alibi"]
AttentionDirection = Literal["causal", "bidirectional"]
AttentionType = Literal["global", "local"]
InitMode = Literal["gpt2", "xavier", "kaiming", "mup"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary angles made slower, so that a model reads further than it was first trained to; n is `original_n_ctx`.

    - linear: every frequency is divided by `factor`.
    - llama3: so are wavelengths beyond n / low_freq_factor; those within n / high_freq_factor stay, and in between the
      two are blended.
    - yarn: the same, blended by the pair's number between those that make so many turns (Peng et al., 2023).
    - dynamic: in an input longer than n the base grows with its length, for all of its positions (NTK).
    - longrope: each pair is divided by a factor of its own, `long_factors` in an input longer than n, `short_factors`
      in others (Ding et al., 2024).
    """

    kind: Literal["linear", "llama3", "yarn", "dynamic", "longrope"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0  # turned queries and keys are multiplied by it

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(get_type_hints(RopeScaling)["kind"])):
            raise ValueError(f"RopeScaling has kind={self.kind!r}; allowed: {str(kinds)[1:-1]}")
        numbers = (self.factor, self.low_freq_factor, self.original_n_ctx, self.attention_factor)
        if min(*numbers, *self.short_factors, *self.long_factors) <= 0 or self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"{self}: factors and lengths are positive, and high_freq_factor exceeds low_freq_factor")
        if bool(self.long_factors) != (self.kind == "longrope") or len(self.short_factors) != len(self.long_factors):
            raise ValueError(f"{self}: short_factors and long_factors, one a pair, belong to kind='longrope'")

    @property
    def depends_on_length(self) -> bool:
        """Whether the angles at a position change with the length of the input."""
        return self.kind in ("dynamic", "longrope")


DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DERIVED: Any = None  # a default that __post_init__ works out from the other fields


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a `HookedGPT`. Names are those of the field; sizes left out are derived from the others.

    A choice that would have no effect (an activation without an MLP, a rotary base without rotary positions) is
    refused, and all faults are reported in one error.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_ctx: int  # the longest input
    d_vocab: int
    d_head: int = _DERIVED  # d_model // n_heads
    n_key_value_heads: int = _DERIVED  # n_heads; fewer: grouped queries
    d_mlp: int = _DERIVED  # 4 * d_model; 0 when attn_only
    d_vocab_out: int = _DERIVED  # d_vocab

    act_fn: Activation = "gelu_new"  # "solu_ln": with a LayerNorm of its own behind it
    gated_mlp: bool = False  # act(x W_gate) * (x W_in) instead of act(x W_in)
    attn_only: bool = False
    parallel_attn_mlp: bool = False  # attention and MLP both read resid_pre
    parallel_shared_norm: bool = False  # ... through the same norm (GPT-J) rather than one each (GPT-NeoX)

    normalization_type: Normalization | None = "LN"  # "LNPre", "RMSPre": without gain and bias
    norm_position: NormPosition = "pre"  # post: norm(x + f(x)); output: x + norm(f(x)); both: x + norm(f(norm(x)))
    norm_gain_from_one: bool = False  # gains are stored less 1 (Gemma)
    embed_norm: bool = False  # token embeddings pass a norm (BLOOM)
    eps: float = 1e-5

    positional_embedding_type: PositionalEmbedding | None = "standard"  # shortformer: read by queries and keys alone
    rotary_dim: int = _DERIVED  # d_head; fewer: only the first coordinates turn; 0 without rotary
    rotary_base: float = 10_000.0
    rotary_adjacent_pairs: bool = False  # turn coordinates (0, 1), (2, 3) … (GPT-J), not (0, r/2), (1, r/2 + 1) …
    rope_scaling: RopeScaling | None = None
    local_rotary_base: float | None = None  # "local" layers turn by this base, unscaled (Gemma 3)
    rotary_layers: tuple[bool, ...] | None = None  # which layers turn; None: all (SmolLM3: three of four)
    embed_scale: float = 1.0  # token embeddings are multiplied by it (Gemma: sqrt(d_model))

    attention_dir: AttentionDirection = "causal"
    attn_scale: float = _DERIVED  # attention scores are divided by it: sqrt(d_head)
    window_size: int | None = None  # "local" layers look back over so many positions, the query's own included
    attn_types: tuple[AttentionType, ...] | None = None  # one a layer; None: all local where there is a window
    attn_scores_soft_cap: float | None = None  # cap * tanh(scores / cap)
    output_logits_soft_cap: float | None = None
    qkv_clip: float | None = None  # queries, keys and values are clamped to ± it (MPT)
    use_qk_norm: bool = False  # queries and keys pass an RMSNorm before they turn
    qk_norm_over_width: bool = False  # ... over all heads together (OLMo 2) rather than in each head (Qwen 3)
    qk_layer_norm: bool = False  # ... a LayerNorm in each head, with a gain of its own (StableLM)

    bias_qkv: bool = True
    bias_attn_out: bool = True
    bias_mlp: bool = _DERIVED  # True where there is an MLP
    bias_norm: bool = _DERIVED  # True with "LN"
    bias_unembed: bool = False
    tie_word_embeddings: bool = False

    default_prepend_bos: bool = True  # whether texts get a beginning-of-text token, where a call does not say
    dropout: float = 0.0  # in training mode only
    dtype: torch.dtype = torch.float32
    device: str | None = None  # where the weights are made; None: torch's default device
    seed: int | None = None  # None: draw from torch's global generator
    init_mode: InitMode = "gpt2"
    initializer_range: float = _DERIVED  # "gpt2": the standard deviation, 0.8 / sqrt(d_model); else a gain, 1

    def __post_init__(self) -> None:
        faults = _type_faults(self)
        if not faults and self.d_head is None and self.n_heads > 0 and self.d_model % self.n_heads:
            faults = [f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}: say which d_head"]
        if not faults:
            _derive(self)
            faults = _size_faults(self) + _idle_faults(self)
        if faults:
            raise ValueError("GPTConfig cannot be built:\n" + "\n".join(f"  - {fault}" for fault in faults))

    @property
    def has_grouped_queries(self) -> bool:
        return self.n_key_value_heads != self.n_heads

    def is_local(self, layer: int) -> bool:
        """Whether a layer's attention looks no further back than the window."""
        return self.window_size is not None and (self.attn_types is None or self.attn_types[layer] == "local")

    @property
    def is_rotary(self) -> bool:
        return self.positional_embedding_type == "rotary"

    @property
    def is_shortformer(self) -> bool:
        return self.positional_embedding_type == "shortformer"

    @property
    def leans(self) -> bool:
        """Whether scores sink with distance (ALiBi)."""
        return self.positional_embedding_type == "alibi"

    @property
    def adds_positions(self) -> bool:
        """Whether each position has a vector that is added to the stream."""
        return self.positional_embedding_type in ("standard", "sinusoidal")

    def turns(self, layer: int) -> bool:
        """Whether a layer's queries and keys turn with their position."""
        return self.is_rotary and (self.rotary_layers is None or self.rotary_layers[layer])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The config that `to_dict` wrote."""
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"unknown config fields: {unknown}; GPTConfig has {known}")
        missing = [field.name for field in fields(cls) if field.name not in values and field.default is MISSING]
        if missing:
            raise ValueError(f"missing config fields: {missing}")
        dtype = values.get("dtype", "float32")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; allowed: {list(DTYPES)}")
        converted: dict[str, Any] = {"dtype": DTYPES[dtype]}
        if values.get("rope_scaling") is not None:
            given: dict[str, Any] = values["rope_scaling"]
            scaling: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
            converted["rope_scaling"] = RopeScaling(**scaling)
        for name in ("attn_types", "rotary_layers"):
            if values.get(name) is not None:
                converted[name] = tuple(values[name])
        return cls(**{**values, **converted})


def _type_faults(cfg: GPTConfig) -> list[str]:
    faults = []
    for name, expected in get_type_hints(GPTConfig).items():
        value = getattr(cfg, name)
        field = GPTConfig.__dataclass_fields__[name]
        if value is None and field.default is None:
            continue
        if name in ("attn_types", "rotary_layers"):
            continue
        choices = [arg for part in (get_args(expected) or (expected,)) for arg in (get_args(part) or (part,))]
        if all(isinstance(choice, str) or choice is type(None) for choice in choices):
            allowed = [None if choice is type(None) else choice for choice in choices]
            if value not in allowed:
                faults.append(f"{name}={value!r}; allowed: {allowed}")
            continue
        kinds = tuple(int | float if choice is float else choice for choice in choices)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            faults.append(f"{name}={value!r} is a {type(value).__name__}; it must be {expected}")
    for name in ("attn_types", "rotary_layers"):
        if getattr(cfg, name) is not None and not isinstance(getattr(cfg, name), tuple):
            return [*faults, f"{name}={getattr(cfg, name)!r}; it must be a tuple, one entry a layer"]
    if wrong := [each for each in cfg.rotary_layers or () if not isinstance(each, bool)]:
        faults.append(f"rotary_layers has {wrong}; allowed: True, False")
    for attn_type in cfg.attn_types or ():
        if attn_type not in get_args(AttentionType):
            faults.append(f"attn_types has {attn_type!r}; allowed: {list(get_args(AttentionType))}")
    if not faults and cfg.dtype not in DTYPES.values():
        faults.append(f"dtype={cfg.dtype}; allowed: {list(DTYPES.values())}")
    return faults


def _derive(cfg: GPTConfig) -> None:
    """Fill in what was left out."""
    d_head = cfg.d_head if cfg.d_head is not None else cfg.d_model // max(cfg.n_heads, 1)
    derived = {
        "d_head": d_head,
        "n_key_value_heads": cfg.n_heads,
        "d_mlp": 0 if cfg.attn_only else 4 * cfg.d_model,
        "d_vocab_out": cfg.d_vocab,
        "rotary_dim": d_head if cfg.is_rotary else 0,
        "attn_scale": sqrt(max(d_head, 0)),
        "bias_mlp": not cfg.attn_only,
        "bias_norm": cfg.normalization_type == "LN",
        "initializer_range": 0.8 / sqrt(max(cfg.d_model, 1)) if cfg.init_mode == "gpt2" else 1.0,
    }
    for name, value in derived.items():
        if getattr(cfg, name) is None:
            object.__setattr__(cfg, name, value)


def _size_faults(cfg: GPTConfig) -> list[str]:
    sizes = [
        "n_layers",
        "d_model",
        "n_heads",
        "n_ctx",
        "d_vocab",
        "d_head",
        "n_key_value_heads",
        "d_vocab_out",
    ]
    positive = [*sizes, "eps", "attn_scale", "initializer_range", "embed_scale"] + ([] if cfg.attn_only else ["d_mlp"])
    optional = ["window_size", "attn_scores_soft_cap", "output_logits_soft_cap", "qkv_clip", "local_rotary_base"]
    positive += [name for name in optional if getattr(cfg, name) is not None]
    faults = [f"{name}={getattr(cfg, name)}; it must be positive" for name in positive if not getattr(cfg, name) > 0]
    if not 0 <= cfg.dropout < 1:
        faults.append(f"dropout={cfg.dropout}; it must be at least 0 and less than 1")
    if cfg.n_key_value_heads > 0 and cfg.n_heads % cfg.n_key_value_heads:
        faults.append(f"n_heads={cfg.n_heads} is no multiple of n_key_value_heads={cfg.n_key_value_heads}")
    if cfg.is_rotary and not (0 < cfg.rotary_dim <= cfg.d_head and cfg.rotary_dim % 2 == 0):
        faults.append(f"rotary_dim={cfg.rotary_dim}; it must be even and between 2 and d_head={cfg.d_head}")
    if cfg.tie_word_embeddings and cfg.d_vocab_out != cfg.d_vocab:
        faults.append(f"tie_word_embeddings with d_vocab={cfg.d_vocab} but d_vocab_out={cfg.d_vocab_out}")
    for name in ("attn_types", "rotary_layers"):
        if (listed := getattr(cfg, name)) is not None and len(listed) != cfg.n_layers:
            faults.append(f"{name} names {len(listed)} layers; n_layers={cfg.n_layers}")
    if cfg.rotary_layers is not None and len(set(cfg.rotary_layers)) == 1:
        faults.append(f"rotary_layers={cfg.rotary_layers}; some layers turn and some do not, or leave it out")
    n_factors = len(cfg.rope_scaling.long_factors) if cfg.is_rotary and cfg.rope_scaling is not None else 0
    if n_factors and n_factors != cfg.rotary_dim // 2:
        faults.append(f"rope_scaling has {n_factors} long_factors; rotary_dim={cfg.rotary_dim} is of twice as many")
    if cfg.window_size is not None and cfg.attn_types is not None and "local" not in cfg.attn_types:
        faults.append(f"window_size={cfg.window_size} would have no effect: no layer of attn_types is 'local'")
    if cfg.window_size is not None and cfg.attention_dir == "bidirectional":
        faults.append("window_size needs attention_dir='causal'")
    if cfg.leans and cfg.attention_dir == "bidirectional":
        faults.append("positional_embedding_type='alibi' needs attention_dir='causal'")
    if cfg.norm_gain_from_one and cfg.normalization_type not in ("RMS", None):
        faults.append(f"norm_gain_from_one needs normalization_type='RMS', not {cfg.normalization_type!r}")
    if cfg.qk_layer_norm and cfg.qk_norm_over_width:
        faults.append("qk_layer_norm is a norm in each head, qk_norm_over_width over all of them")
    if cfg.parallel_attn_mlp and cfg.norm_position != "pre":
        faults.append(f"parallel_attn_mlp needs norm_position='pre', not {cfg.norm_position!r}")
    if cfg.gated_mlp and cfg.act_fn in ("solu", "solu_ln"):
        faults.append(f"gated_mlp needs an act_fn of each neuron alone, not {cfg.act_fn!r}")
    return faults


def _idle_faults(cfg: GPTConfig) -> list[str]:
    """Choices that would change nothing."""
    mlp = ["d_mlp", "act_fn", "gated_mlp", "bias_mlp", "parallel_attn_mlp"]
    rotary = ["rotary_dim", "rotary_base", "rotary_adjacent_pairs", "rope_scaling"]
    rotary += ["local_rotary_base", "rotary_layers"]
    norms = ["norm_position", "parallel_shared_norm", "norm_gain_from_one", "embed_norm"]
    norms += [] if cfg.act_fn == "solu_ln" else ["eps"]
    idle = {
        "attn_only has no MLP": mlp if cfg.attn_only else [],
        "the positions are not rotary": [] if cfg.is_rotary else rotary,
        "there is no norm": [] if cfg.normalization_type else norms,
        "only 'LN' has a norm bias": [] if cfg.normalization_type == "LN" else ["bias_norm"],
        "there is no window": [] if cfg.window_size else ["attn_types", "local_rotary_base"],
        "queries and keys are not normed": [] if cfg.use_qk_norm else ["qk_norm_over_width", "qk_layer_norm"],
        "attention and MLP are not parallel": [] if cfg.parallel_attn_mlp else ["parallel_shared_norm"],
    }
    neutral = {"d_mlp": 0, "rotary_dim": 0, "bias_mlp": False, "bias_norm": False}
    return [
        f"{name}={getattr(cfg, name)!r} would have no effect: {reason}"
        for reason, names in idle.items()
        for name in names
        if getattr(cfg, name) != neutral.get(name, GPTConfig.__dataclass_fields__[name].default)
    ]
