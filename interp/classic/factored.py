"""FactoredMatrix with the classic names: its `svd` gives V, [rdim rank], where `interp` and torch give Vh."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from typing import cast

from torch import Tensor

from interp import weights


class FactoredMatrix(weights.FactoredMatrix):
    """The matrix A B, kept as its factors."""

    @property
    def BA(self) -> Tensor:
        return self.B @ self.A

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S, V with U diag(S) Vᵀ = A B."""
        U, S, Vh = super().svd()
        return U, S, Vh.mT

    @property
    def V(self) -> Tensor:
        return self.svd()[2]

    @property
    def Vh(self) -> Tensor:
        return self.V

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """With a new leading axis of length 1."""
        return cast(FactoredMatrix, super().unsqueeze(k))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first entries along every axis, multiplied out."""
        return self.AB[(slice(k),) * self.ndim]
