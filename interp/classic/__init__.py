"""A home for code written for HookedTransformer: `import interp.classic as transformer_lens`.

Coming from TransformerLens: names, arguments, defaults, shapes and order are those of its version 3.9; weights, hooks,
caches and sweeps are the rest of `interp`. There is no second model: `model.native()` is the same one, as a
`HookedGPT`. In code that is new, or that is to be read, say it natively:

| here | natively |
|---|---|
| `HookedTransformer.from_pretrained(…)` | `HookedGPT.from_pretrained(…)`, then `weights.fold_norms(model)` … |
| `HookedTransformerConfig(…)` | `GPTConfig(…)` |
| `model.run_with_hooks(tokens, fwd_hooks=[…])` | the same; or `with model.edit([Patch(Site("z", 1), source)])` |
| `model.add_hook(…, level=1)`, `reset_hooks` | `with model.hooks([…])`: gone at its end, of that thread alone |
| `set_use_attn_result(True)` and its kin | nothing: what is listened to is computed |
| `cache.decompose_resid(…)`, `logit_attrs` | `lens.direct_logit_attribution(…)`: labelled, exact, with the rest named |
| `patching.get_act_patch_resid_pre(…)` | `patching.activation_patching(model, clean, corrupted, "resid_pre", metric)` |
| `model.all_composition_scores("K")` | `weights.composition_scores(model, "K")`, with what random heads score |
| `utils.lm_cross_entropy_loss(…)`, `test_prompt` | `model(tokens, "loss")`, `metrics` |

What is another way underneath:

- Hooks of a block belong to its thread, and are gone however it ends. A name that matches nothing is an error.
- `ln1` is differentiated as a whole: classic gradients at its points were of the last of three calls.
- `apply_ln_to_stack` takes the gain in where it is not folded; composition scores do, too.
- Sweeps with the setters of `patching` run many patches at a time. A metric that reads the last position alone gets
  unknown (NaN) logits elsewhere.
- Generation counts learned positions once, whatever the tokenizer, and always keeps keys and values.
- `clip_qkv` clips before `hook_q`, `hook_k` and `hook_v`, not behind them; ALiBi's slopes are the paper's for any
  number of heads.
- A `b_in` of a gated MLP is added before the gate is multiplied in, as in the papers.
- A field of the config without effect is refused by name.
- W_Q, W_K and W_V are views of one fused matrix: write into them in place; `model.grad("W_Q", layer)` has a gradient.

Left out on purpose:

- encoders, encoder-decoders, audio, mixtures of experts, state-space models, quantised weights: another architecture
- `components`, `factories`, `conversion_utils`, `TransformerBridge`: `interp.model` has the parts, `interp.loading`
  the conversions
- models over several devices (`n_devices`, `utils` on devices): `torchrun` and `interp.training.parallel`
- processing of a loose state dict (`fold_layer_norm`, `center_unembed` …): `load_and_process_state_dict`, or `weights`
- inner steps of a pass (`get_residual`, `get_pos_offset`) and checks of hooks: there is no such step here
- `freq_penalty` of `generate`: `repetition_penalty` of `HookedGPT.generate`; `utils.sample_logits` has both
- `get_tokenizer_with_bos`, `tokenizer_prepends_bos`: tokenizers here never begin a text by themselves
- a hook's `alias_names`, `enable_reshape`: of the bridge to other libraries' models
- `mmlu_eval`: a benchmark of its own; `wandb=True` of `train`: nothing is sent anywhere
- the toy models called `…_old`: a layout of their own, and a final norm of another kind
- a module for each class (`transformer_lens.HookedTransformer`): classes are imported from the package
"""

from interp.classic import evals, head_detector, hook_points, patching, train, utils
from interp.classic import loading_from_pretrained as loading
from interp.classic import utils as utilities
from interp.classic.cache import ActivationCache
from interp.classic.config import HookedTransformerConfig
from interp.classic.factored import FactoredMatrix
from interp.classic.hook_points import HookedRootModule
from interp.classic.key_value_cache import TransformerLensKeyValueCache, TransformerLensKeyValueCacheEntry
from interp.classic.model import HookedTransformer
from interp.classic.svd_interpreter import SVDInterpreter

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "SVDInterpreter",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "evals",
    "head_detector",
    "hook_points",
    "loading",
    "patching",
    "train",
    "utilities",
    "utils",
]
