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
- A `b_in` of a gated MLP is added before the gate is multiplied in, as in the papers.
- A field of the config without effect is refused by name.

Not here yet: the data sets of the hub.
"""

from interp.classic import evals, head_detector, patching, train, utils
from interp.classic.cache import ActivationCache
from interp.classic.config import HookedTransformerConfig
from interp.classic.factored import FactoredMatrix
from interp.classic.hook_points import HookedRootModule
from interp.classic.model import HookedTransformer
from interp.classic.svd_interpreter import SVDInterpreter

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "SVDInterpreter",
    "evals",
    "head_detector",
    "patching",
    "train",
    "utils",
]
