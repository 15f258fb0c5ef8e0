"""HookedTransformer: `HookedGPT` with the classic constructor, arguments, defaults and layout of weights."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.classic.cache import ActivationCache
from interp.classic.config import HookedTransformerConfig
from interp.classic.factored import FactoredMatrix
from interp.classic.hook_points import HookedRootModule
from interp.classic.names import official_name
from interp.classic.state import centred_readers, load_classic, refactored, to_classic
from interp.config import DTYPES
from interp.model import HookedGPT, KVCache
from interp.model.inputs import next_token_loss
from interp.tokenization import Tokenizer
from interp.weights import center_unembed, center_writes, composition_scores, fold_norms
from interp.weights import fold_value_biases as fold_values

Text = str | Sequence[str]
Side = Literal["left", "right"]
_SWITCHES = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_hook_mlp_in": ("hook_mlp_in",),
    "use_attn_in": ("hook_attn_in",),
}
USE_DEFAULT_VALUE: Any = None


class HookedTransformer(HookedRootModule, HookedGPT):
    """The classic model: weights, hooks, caches and generation are those of `HookedGPT`, called in the classic way."""

    cfg: HookedTransformerConfig

    def __init__(
        self,
        cfg: HookedTransformerConfig | Mapping[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Side | None = None,
    ) -> None:
        cfg = HookedTransformerConfig.unwrap(cfg)
        if tokenizer is None and (name := cfg.described()["tokenizer_name"]) is not None:
            tokenizer = Tokenizer.load(name)
        ours = None if tokenizer is None else native_tokenizer(tokenizer)
        if cfg.d_vocab == -1:
            if ours is None:
                raise ValueError("Must provide a tokenizer if d_vocab is not provided")
            cfg = cfg.of_size(ours.d_vocab)
        HookedGPT.__init__(self, cfg, ours)  # type: ignore[arg-type]
        self.default_padding_side: Side = default_padding_side or "right"
        self._settle()

    def _settle(self) -> None:
        self.cfg.seal()
        self.cfg.tokenizer_prepends_bos = False  # of ours; where one begins with a token of its own, it is taken off
        for switch, points in _SWITCHES.items():
            for point in points:
                for name in self.hooks_by_part.get(point, ()):
                    self.hook_dict[name].is_cached_by_default = bool(getattr(self.cfg, switch))

    @classmethod
    def of(cls, model: HookedGPT, **described: Any) -> "HookedTransformer":
        """A native model with the classic calls, its weights shared."""
        made = cls(HookedTransformerConfig.of(replace(model.cfg, device="meta"), **described), model.tokenizer)
        made.load_native(model)
        return made

    def load_native(self, model: HookedGPT) -> None:
        """Take the weights of a model of the same shape, not copies of them."""
        nn.Module.load_state_dict(self, HookedGPT.state_dict(model), assign=True)
        device = str(model.device)
        cfg = HookedTransformerConfig.of(replace(model.cfg, device=device), **self.cfg.described())
        self.cfg = cfg
        for block in self.blocks:
            block.attn.cfg = cfg
        self._settle()
        self.train(model.training)

    def native(self) -> HookedGPT:
        """This very model, as a `HookedGPT`: the same modules, weights and hooks."""
        view = object.__new__(HookedGPT)
        view.__dict__.update(self.__dict__)
        view.cfg = self.cfg.native()
        return view

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: int | None = None,
        hf_model: Any = None,
        device: torch.device | str | None = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,  # noqa: ARG003
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: Side | None = None,
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> "HookedTransformer":
        """A checkpoint, its weights made simpler as asked; from `hf_model`, from a folder, or from the hub by any of
        the classic names."""
        if checkpoint_index is not None or checkpoint_value is not None or checkpoint_label is not None:
            raise ValueError("checkpoints are asked for by their revision on the hub: revision='step1000'")
        if n_devices != 1:
            raise ValueError(f"n_devices={n_devices}: a model lies on one device")
        kept = {
            name: from_pretrained_kwargs[name] for name in ("revision", "cache_dir") if name in from_pretrained_kwargs
        }
        if unknown := sorted(set(from_pretrained_kwargs) - {"revision", "cache_dir", "torch_dtype", "token"}):
            raise ValueError(f"from_pretrained knows nothing of {unknown}")
        dtype = from_pretrained_kwargs.get("torch_dtype", dtype)
        exact = DTYPES[dtype.removeprefix("torch.")] if isinstance(dtype, str) else dtype
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if hf_model is None:
            loaded = HookedGPT.from_pretrained(official_name(model_name), dtype=exact, device=device, **kept)
        else:
            with tempfile.TemporaryDirectory() as folder:
                hf_model.save_pretrained(folder)
                loaded = HookedGPT.from_pretrained(Path(folder), dtype=exact, device=device)
        if tokenizer is not None:
            loaded.tokenizer = native_tokenizer(tokenizer)
        if first_n_layers is not None:
            loaded = _shortened(loaded, first_n_layers)
        if default_prepend_bos is not None:
            loaded.cfg = replace(loaded.cfg, default_prepend_bos=default_prepend_bos)
        loaded = _processed(
            loaded, fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices
        )
        named = {"model_name": model_name.rpartition("/")[2], "tokenizer_name": None}
        model = cls.of(loaded, **named)
        model.default_padding_side = default_padding_side or "right"
        return model

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: str,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        dtype: torch.dtype | str = torch.float32,
        default_prepend_bos: bool | None = None,
        default_padding_side: Side | None = None,
        **from_pretrained_kwargs: Any,
    ) -> "HookedTransformer":
        """A checkpoint with its weights as they are."""
        return cls.from_pretrained(
            model_name,
            fold_ln,
            center_writing_weights,
            center_unembed,
            refactor_factored_attn_matrices,
            fold_value_biases=fold_value_biases,
            dtype=dtype,
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
            **from_pretrained_kwargs,
        )

    # Weights and their processing

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The weights by their classic names; the native ones are `native().state_dict()`."""
        return to_classic(self.native())

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Weights by their classic names, or by the native ones."""
        if "embed.W_E" in state_dict and not any(name.endswith("attn.qkv.weight") for name in state_dict):
            missing, unknown = load_classic(self.native(), state_dict, strict)
            return torch.nn.modules.module._IncompatibleKeys(missing, unknown)
        return nn.Module.load_state_dict(self, state_dict, strict, assign)

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Take weights by their classic names, and make them simpler as asked."""
        load_classic(self.native(), state_dict, strict=False)
        self._become(
            fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices
        )

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Make the weights simpler as asked, in place."""
        self._become(fold_ln, center_writing_weights, center_unembed, True, refactor_factored_attn_matrices)

    def _become(self, *choices: bool) -> None:
        self.__dict__.update(type(self).of(_processed(self.native(), *choices), **self.cfg.described()).__dict__)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the model to a folder that `HookedGPT.from_pretrained` and this class open."""
        self.native().save_pretrained(*args, **kwargs)

    def fingerprint(self) -> str:
        """A hash of what the model computes."""
        return self.native().fingerprint()

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        return HookedGPT.all_heads(self, super().W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        return HookedGPT.all_heads(self, super().W_V)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        return HookedGPT.all_heads(self, super().b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        return HookedGPT.all_heads(self, super().b_V)

    def all_heads(self, by_kv_head: Tensor) -> Tensor:
        """Already so: here every head has keys and values of its own."""
        return by_kv_head

    @property
    def W_E_pos(self) -> Float[Tensor, "token_and_pos d_model"]:
        """Embeddings of tokens, and of positions behind them."""
        return torch.cat((self.W_E, self.W_pos))

    @property
    def QK(self) -> FactoredMatrix:
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def n_params_total(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The sum of all b_O and b_out of the layers before `layer` (with `mlp_input`, its b_O too)."""
        total = self.W_E.new_zeros(self.cfg.d_model)
        for i in range(layer + mlp_input):
            total = total + self.b_O[i]
            if i < layer and include_mlp_biases and not self.cfg.attn_only:
                total = total + self.b_out[i]
        return total

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"]
    ) -> Float[Tensor, "layer head later_layer later_head"]:
        """How much each head composes with each later one, by the weights."""
        found = composition_scores(self.native(), mode, progress=False).to_numpy()
        return torch.from_numpy(found).to(self.W_E).nan_to_num()

    def all_head_labels(self) -> list[str]:
        """`L0H0` and so on."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    # Switches. What they switch is always there; on, it is part of a whole cache too.

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        self._switch("use_attn_result", use_attn_result)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        self._switch("use_split_qkv_input", use_split_qkv_input)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        self._switch("use_hook_mlp_in", use_hook_mlp_in)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        self._switch("use_attn_in", use_attn_in)

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Accepted where there is nothing to ungroup."""
        if ungroup_grouped_query_attention and self.cfg.has_grouped_queries:
            raise ValueError("keys and values are hooked by group; edit a group, or a head's pattern and z")
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    def _switch(self, name: str, on: bool) -> None:
        setattr(self.cfg, name, on)
        self._settle()

    # Calls

    def forward(
        self,
        input: Text | Tensor,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits, the next-token loss, both, or nothing; or the stream before `stop_at_layer`."""
        if not isinstance(input, Tensor):
            input, attention_mask = self._read(input, prepend_bos, padding_side, attention_mask)
        between: dict[str, Any] = {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer}
        if start_at_layer is not None and stop_at_layer is None and return_type in ("loss", "both"):
            if tokens is None:
                raise ValueError("a loss from start_at_layer on needs tokens=")
            logits = HookedGPT.forward(self, input, attention_mask=attention_mask, **between)
            loss = self.loss_fn(logits, tokens, attention_mask, loss_per_token)
            return loss if return_type == "loss" else (logits, loss)
        return HookedGPT.forward(
            self,
            input,
            "logits" if stop_at_layer is not None and return_type is not None else return_type,
            loss_per_token=loss_per_token and return_type in ("loss", "both"),
            attention_mask=attention_mask,
            past_kv_cache=past_kv_cache,
            last_only=last_only,
            **between,
        )

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """The next-token loss of logits."""
        mask = None if attention_mask is None else attention_mask.bool()
        return next_token_loss(logits, tokens, mask, per_token)

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """What a call returns, and what it computed."""
        kwargs.pop("reset_hooks_end", None)
        clears = kwargs.pop("clear_contexts", False)
        named = dict(zip(("input", "return_type"), model_args, strict=False)) | kwargs
        per_token = named.pop("loss_per_token", False)
        side = named.pop("padding_side", USE_DEFAULT_VALUE)
        if per_token and named.get("incl_bwd"):
            raise ValueError("incl_bwd differentiates one number; loss_per_token gives many")
        if not isinstance(named["input"], Tensor):
            given, mask = self._read(
                named["input"], named.pop("prepend_bos", USE_DEFAULT_VALUE), side, named.get("attention_mask")
            )
            named |= {"input": given, "attention_mask": mask}
        else:
            named.pop("prepend_bos", None)
        with_loss = named.get("return_type") if per_token else None
        if with_loss in ("loss", "both"):
            named["return_type"] = "logits"
        out, cache = HookedGPT.run_with_cache(self, named.pop("input"), remove_batch_dim=remove_batch_dim, **named)
        if with_loss in ("loss", "both"):
            assert cache.tokens is not None
            loss = self.loss_fn(out, cache.tokens, cache.attention_mask, per_token=True)
            out = loss if with_loss == "loss" else (out, loss)
        if clears:
            self.clear_contexts()
        return out, ActivationCache.of(cache) if return_cache_object else dict(cache)

    def generate(
        self,
        input: Text | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        return_type: Literal["input", "str", "tokens"] | None = "input",
        verbose: bool = True,
        seed: int | None = None,
    ) -> Any:
        """The prompt and more of it: text for text, tokens for tokens, unless `return_type` says otherwise.

        Keys and values are always kept; `use_past_kv_cache=False` asks for nothing else.
        """
        if freq_penalty:
            raise ValueError(f"freq_penalty={freq_penalty}: say repetition_penalty of HookedGPT.generate instead")
        self.eval()
        ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
        if return_type not in ("input", "str", "tokens", None):
            raise ValueError(f"return_type={return_type!r}; allowed: 'input', 'str', 'tokens'")
        is_text = not isinstance(input, Tensor)
        wanted = "tokens" if return_type == "tokens" or (return_type in ("input", None) and not is_text) else "text"
        return HookedGPT.generate(
            self,
            input,
            max_new_tokens,
            temperature=temperature if do_sample else 0,
            top_k=top_k if do_sample else None,
            top_p=top_p if do_sample else None,
            eos_token_id=ends[0] if ends else None,
            stop=ends[1:],
            stop_at_eos=stop_at_eos,
            prepend_bos=prepend_bos if is_text else None,
            seed=seed,
            return_type=wanted,
            progress=verbose,
        )

    def generate_stream(
        self, input: Text | Tensor = "", max_new_tokens: int = 10, max_tokens_per_yield: int = 25, **choices: Any
    ) -> Iterator[Tensor]:
        """The prompt's tokens, then the new ones, at most so many at a time. (All are made before any is given.)"""
        tokens = input if isinstance(input, Tensor) else self._read(input, choices.get("prepend_bos"), "left", None)[0]
        choices |= {"return_type": "tokens", "verbose": False}
        yield tokens
        done, whole = 0, self.generate(tokens, max_new_tokens, **choices)
        new = whole[:, tokens.shape[1] :]
        while done < new.shape[1]:
            yield new[:, done : done + max_tokens_per_yield]
            done += max_tokens_per_yield

    # Text

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """The tokenizer that reads and writes text from now on."""
        self.tokenizer = native_tokenizer(tokenizer)
        self.default_padding_side = default_padding_side or self.default_padding_side
        if self.tokenizer.d_vocab > self.cfg.d_vocab:
            raise ValueError(f"the tokenizer has {self.tokenizer.d_vocab} tokens, the model d_vocab={self.cfg.d_vocab}")

    def to_tokens(
        self,
        input: Text,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """The token ids of one text or several, cut at the length of the context."""
        tokens = HookedGPT.to_tokens(self, input, prepend_bos, padding_side or self.default_padding_side)
        tokens = tokens[:, : self.cfg.n_ctx] if truncate else tokens
        return tokens if move_to_device else tokens.cpu()

    def _read(
        self, text: Text, prepend_bos: bool | None, padding_side: Side | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        tokens, found = self.read_input(text, prepend_bos, mask, padding_side or self.default_padding_side)
        return tokens[:, : self.cfg.n_ctx], None if found is None else found[:, : self.cfg.n_ctx]

    def to_str_tokens(
        self,
        input: str | Tensor | Sequence[Any],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> Any:
        """The text of each token; of several texts, a list for each."""
        if isinstance(input, list | tuple) and input and not isinstance(input[0], int):
            return [self.to_str_tokens(each, prepend_bos) for each in input]
        if isinstance(input, Tensor) and input.ndim == 2 and len(input) == 1:
            input = input[0]
        return HookedGPT.to_str_tokens(self, cast(Any, input), prepend_bos)

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The direction in the final stream that raises each token's logit."""
        if isinstance(tokens, str):
            return HookedGPT.tokens_to_residual_directions(self, tokens)
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[ids[0] if ids.ndim == 1 and len(ids) == 1 else ids]

    def to(self, device_or_dtype: Any, print_details: bool = True) -> "HookedTransformer":
        """On another device, or in another precision."""
        return cast(HookedTransformer, nn.Module.to(self, device_or_dtype))


def native_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer of `transformers` as ours; ours as it is."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TypeError(f"{type(tokenizer).__name__} is no fast tokenizer; load it with use_fast=True")
    special = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token", "pad_token")}
    return Tokenizer.from_json(tokenizer.backend_tokenizer.to_str(), **special)


def _processed(model: HookedGPT, fold_ln: bool, center: bool, unembed: bool, values: bool, refactor: bool) -> HookedGPT:
    """A model of the same probabilities, its weights made simpler as asked, where that can be done."""
    if fold_ln and model.cfg.normalization_type in ("LN", "RMS") and not model.cfg.is_shortformer:
        model = centred_readers(fold_norms(model))
    if center and model.cfg.normalization_type in ("LN", "LNPre") and model.cfg.norm_position == "pre":
        model = center_writes(model)
    if unembed and model.cfg.output_logits_soft_cap is None:
        model = center_unembed(model)
    if values:
        model = fold_values(model)
    return refactored(model) if refactor else model


def _shortened(model: HookedGPT, n_layers: int) -> HookedGPT:
    """A model of the first layers."""
    kinds = model.cfg.attn_types and model.cfg.attn_types[:n_layers]
    short = HookedGPT(replace(model.cfg, n_layers=n_layers, attn_types=kinds, device="meta"), model.tokenizer)
    weights = model.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()}, assign=True)
    short.cfg = replace(short.cfg, device=model.cfg.device)
    return short.train(model.training)
