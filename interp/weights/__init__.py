"""What is read from weights alone: circuits kept factored, composition, copying; and weights made simpler.

`ov_circuit(model, 1, 3)` is a `FactoredMatrix`; scores are labelled arrays; `fold_norms(model)` is a new model.
"""

from interp.weights.circuits import ov_circuit, positional_qk, qk_circuit
from interp.weights.composition import composition_scores, random_composition, virtual_weights
from interp.weights.counts import Weight, parameter_counts, stored
from interp.weights.factored import FactoredMatrix
from interp.weights.folding import center_unembed, center_writes, fold_norms, fold_value_biases
from interp.weights.stream import effective_embedding
from interp.weights.tokens import Cost, copying_scores, ov_cost, ov_top_tokens, svd_tokens

__all__ = [
    "Cost",
    "FactoredMatrix",
    "Weight",
    "center_unembed",
    "center_writes",
    "composition_scores",
    "copying_scores",
    "effective_embedding",
    "fold_norms",
    "fold_value_biases",
    "ov_circuit",
    "ov_cost",
    "ov_top_tokens",
    "parameter_counts",
    "positional_qk",
    "qk_circuit",
    "random_composition",
    "stored",
    "svd_tokens",
    "virtual_weights",
]
