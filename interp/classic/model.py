"""HookedTransformer: `HookedGPT` with the classic constructor, arguments, defaults and layout of weights."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.classic.calls import Calls
from interp.classic.checkpoints import checkpoint_labels, of_transformers, opened, with_context
from interp.classic.config import HookedTransformerConfig
from interp.classic.factored import FactoredMatrix
from interp.classic.names import architecture, official_name
from interp.classic.parts import let_be_called_alone
from interp.classic.processing import processed, shortened
from interp.classic.state import load_classic, to_classic
from interp.classic.text import Side
from interp.classic.tokenizers import native_tokenizer, tokenizer_named
from interp.config import DTYPES
from interp.model import HookedGPT
from interp.weights import composition_scores

_SWITCHES = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_hook_mlp_in": ("hook_mlp_in",),
    "use_attn_in": ("hook_attn_in",),
}


class HookedTransformer(Calls):
    """The classic model: weights, hooks, caches and generation are those of `HookedGPT`, called in the classic way."""

    def __init__(
        self,
        cfg: HookedTransformerConfig | Mapping[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Side | None = None,
    ) -> None:
        cfg = HookedTransformerConfig.unwrap(cfg)
        if tokenizer is None and (name := cfg.described()["tokenizer_name"]) is not None:
            tokenizer = tokenizer_named(name)
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
        let_be_called_alone(self)
        self.cfg.tokenizer_prepends_bos = False  # of ours; where one begins with a token of its own, it is taken off
        for switch, points in _SWITCHES.items():
            if getattr(self.cfg, switch) and not any(point in self.hooks_by_part for point in points):
                raise ValueError(f"{switch}=True, but this model has no {' or '.join(points)}")
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
        n_ctx: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> "HookedTransformer":
        """A checkpoint, its weights made simpler as asked; from `hf_model`, from a folder, or from the hub by any of
        the classic names. Of a shortformer, whose positions pass no norm, only value biases are folded."""
        if n_devices != 1:
            raise ValueError(f"n_devices={n_devices}: a model lies on one device")
        if unknown := sorted(set(from_pretrained_kwargs) - {"revision", "cache_dir", "torch_dtype", "token"}):
            raise ValueError(f"from_pretrained knows nothing of {unknown}")
        kept = {name: from_pretrained_kwargs.get(name) for name in ("revision", "cache_dir")}
        dtype = from_pretrained_kwargs.get("torch_dtype", dtype)
        exact = DTYPES[dtype.removeprefix("torch.")] if isinstance(dtype, str) else dtype
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = checkpoint_value if checkpoint_value is not None else checkpoint_label
        if checkpoint_index is not None:
            checkpoint = checkpoint_labels(model_name)[0][checkpoint_index]
        if hf_model is not None:
            loaded = of_transformers(hf_model, exact, device)
        else:
            loaded = opened(model_name, exact, device, checkpoint, tokenizer, **kept)
        if tokenizer is not None:
            loaded.tokenizer = native_tokenizer(tokenizer)
        if first_n_layers is not None:
            loaded = shortened(loaded, first_n_layers)
        if n_ctx is not None:
            loaded = with_context(loaded, n_ctx)
        if default_prepend_bos is not None:
            loaded.cfg = replace(loaded.cfg, default_prepend_bos=default_prepend_bos)
        if loaded.cfg.is_shortformer:
            fold_ln = center_writing_weights = center_unembed = False
        loaded = processed(
            loaded, fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices
        )
        official = official_name(model_name)
        about = {"model_name": official.rpartition("/")[2], "original_architecture": architecture(official)}
        model = cls.of(loaded, **about, from_checkpoint=checkpoint is not None, checkpoint_value=checkpoint)
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

    def _become(self, fold: bool, center: bool, unembed: bool, values: bool, refactor: bool) -> None:
        made = processed(self.native(), fold, center, unembed, values, refactor)
        self.__dict__.update(type(self).of(made, **self.cfg.described()).__dict__)

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
        before = getattr(self.cfg, name)
        setattr(self.cfg, name, on)
        try:
            self._settle()
        except ValueError:
            setattr(self.cfg, name, before)
            raise

    def to(self, device_or_dtype: Any, print_details: bool = True) -> "HookedTransformer":
        """On another device, or in another precision."""
        return cast(HookedTransformer, nn.Module.to(self, device_or_dtype))

    def mps(self) -> "HookedTransformer":
        """On an Apple GPU."""
        return self.to("mps")
