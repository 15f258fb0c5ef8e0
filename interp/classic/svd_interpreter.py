"""Singular vectors of a layer's weights, as the logits that they raise."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

VECTOR_TYPES = ("OV", "w_in", "w_out")


class SVDInterpreter:
    """What the strongest directions of a matrix say."""

    def __init__(self, model: Any) -> None:
        self.model, self.cfg = model, model.cfg

    @torch.no_grad()
    def get_singular_vectors(
        self,
        vector_type: Literal["OV", "w_in", "w_out"],
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
    ) -> Float[Tensor, "d_vocab_out 1 vector"]:
        """The logits of the singular vectors of what a head writes, of what an MLP reads, or of what it writes."""
        if vector_type not in VECTOR_TYPES:
            raise ValueError(f"Vector type must be in {VECTOR_TYPES}, instead got {vector_type}")
        if not 0 <= layer_index < self.cfg.n_layers:
            raise IndexError(f"layer_index={layer_index}; allowed: 0 to {self.cfg.n_layers - 1}")
        block = self.model.blocks[layer_index]
        if vector_type == "OV":
            if head_index is None or not 0 <= head_index < self.cfg.n_heads:
                raise IndexError(f"head_index={head_index}; allowed: 0 to {self.cfg.n_heads - 1}")
            directions = self.model.OV[layer_index, head_index].svd()[2].mT
        else:
            weight = block.mlp.W_in.mT if vector_type == "w_in" else block.mlp.W_out
            if vector_type == "w_in" and block.ln2.w is not None:
                weight = weight * block.ln2.w
            directions = torch.linalg.svd(weight, full_matrices=False).Vh
        if not 1 <= num_vectors <= len(directions):
            raise ValueError(f"num_vectors={num_vectors}; allowed: 1 to {len(directions)}")
        return (directions[:num_vectors].to(self.model.W_U) @ self.model.W_U).mT[:, None]
