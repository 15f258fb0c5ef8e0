"""FactoredMatrix: a product of two thin matrices, kept as its factors.

A circuit of a head is a large matrix of small rank: W_OV = W_V W_O is d_model × d_model, its rank d_head. All that is
asked of it here is answered from the factors; only `AB` multiplies them out.
"""

from functools import cached_property
from types import EllipsisType
from typing import Any

import torch
from einops import einsum
from jaxtyping import Complex, Float
from torch import Tensor

Index = int | slice | EllipsisType | Tensor | list[int] | None


class FactoredMatrix:
    """The matrix A B, of leading axes that broadcast. It multiplies, transposes, and is indexed as A B would be.

    A row or column taken by a number stays, as an axis of length 1: `m[3, 5]` of an unbatched one is 1 × 1, factored.
    """

    def __init__(self, A: Float[Tensor, "*leading ldim mdim"], B: Float[Tensor, "*others inner rdim"]) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise ValueError(f"A has {A.shape[-1]} columns and B {B.shape[-2]} rows; shapes {_pair(A, B)} do not fit")
        if (A.dtype, A.device) != (B.dtype, B.device):
            raise ValueError(f"A is {A.dtype} on {A.device}, B {B.dtype} on {B.device}; they must be alike")
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            raise ValueError(f"the leading axes of shapes {_pair(A, B)} do not broadcast") from None
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])

    @property
    def ldim(self) -> int:
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """The length of the axis between the factors: the rank, at most."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        return self.B.shape[-1]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        return self.A.ndim

    @property
    def has_leading_dims(self) -> bool:
        return self.ndim > 2

    @property
    def dtype(self) -> torch.dtype:
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        return self.A.device

    def to(self, *args: Any) -> "FactoredMatrix":
        """On another device, or of another dtype."""
        return type(self)(self.A.to(*args), self.B.to(*args))

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={list(self.shape)}, mdim={self.mdim}, dtype={self.dtype})"

    @property
    def AB(self) -> Float[Tensor, "*leading ldim rdim"]:
        """The matrix itself, multiplied out."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        return type(self)(self.B.mT, self.A.mT)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> "FactoredMatrix":
        """The part that the same index takes of `AB`: leading axes first, then rows, then columns."""
        leading, rows, columns = self._split(index if isinstance(index, tuple) else (index,))
        A, B = self.A[(*leading, ...)], self.B[(*leading, ...)]  # of their own axes, the last two are left whole
        return type(self)(A[..., rows, :], B[..., columns])

    def _split(self, index: tuple[Index, ...]) -> tuple[tuple[Index, ...], Index, Index]:
        """An index of the leading axes, of rows, and of columns."""
        n_given = sum(each is not None and each is not ... for each in index)
        if n_given > self.ndim:
            raise IndexError(f"{n_given} indices for {self!r}, which has {self.ndim} axes")
        whole = (slice(None),) * (self.ndim - n_given)
        at = next((i for i, each in enumerate(index) if each is ...), len(index))
        full = (*index[:at], *whole, *index[at + 1 :])
        if None in full[-2:] or ... in full:
            raise IndexError("new axes stand before the rows and columns, and '...' at most once")
        return full[:-2], _kept(full[-2], self.ldim), _kept(full[-1], self.rdim)

    def unsqueeze(self, dim: int) -> "FactoredMatrix":
        """With a new leading axis of length 1 at `dim`."""
        if not 0 <= dim <= self.ndim - 2:
            raise ValueError(f"dim={dim}; a new leading axis of {self!r} is at 0 to {self.ndim - 2}")
        return type(self)(self.A.unsqueeze(dim), self.B.unsqueeze(dim))

    def flatten_leading(self) -> "FactoredMatrix":
        """With all leading axes as one: heads of all layers in a row."""
        A, B = (each.reshape(-1, *each.shape[-2:]) for each in (self.A, self.B))
        return type(self)(A, B)

    def get_corner(self, n: int = 3) -> Float[Tensor, "*leading rows columns"]:
        """The first entries, multiplied out, to look at."""
        return self.A[..., :n, :] @ self.B[..., :n]

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "FactoredMatrix | Tensor":
        """A factored matrix; of a vector, a vector."""
        if isinstance(other, FactoredMatrix):
            return self.times(other)
        if not isinstance(other, Tensor):
            return NotImplemented
        _check_inner(self.shape, other.shape)
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        return type(self)(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> "FactoredMatrix | Tensor":
        if not isinstance(other, Tensor):
            return NotImplemented
        _check_inner(other.shape, self.shape)
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return type(self)(other @ self.A, self.B)

    def times(self, other: "FactoredMatrix") -> "FactoredMatrix":
        """self @ other, of the lesser rank."""
        _check_inner(self.shape, other.shape)
        between = self.B @ other.A
        if self.mdim <= other.mdim:
            return type(self)(self.A, between @ other.B)
        return type(self)(self.A @ between, other.B)

    def __mul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        if not isinstance(scalar, int | float | Tensor):
            return NotImplemented
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ValueError(f"a factored matrix is multiplied by a number, not by shape {list(scalar.shape)}; see @")
        by = scalar.reshape(()) if isinstance(scalar, Tensor) else scalar
        return type(self)(self.A * by, self.B)

    def __rmul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        return self * scalar

    def __truediv__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        return self * (1 / scalar)

    def __neg__(self) -> "FactoredMatrix":
        return self * -1

    @property
    def trace(self) -> Float[Tensor, "*leading"]:
        self._check_square("a trace")
        return einsum(self.A, self.B, "... row mid, ... mid row -> ...")

    @property
    def eigenvalues(self) -> Complex[Tensor, "*leading mdim"]:
        """Those of B A: all of A B's that are not 0, and where the factors are wider than A B, zeros beside."""
        self._check_square("eigenvalues")
        return torch.linalg.eigvals(self.B @ self.A)

    def norm(self) -> Float[Tensor, "*leading"]:
        """The Frobenius norm."""
        left, right = torch.linalg.qr(self.A).R, torch.linalg.qr(self.B.mT).R
        return torch.linalg.matrix_norm(left @ right.mT)

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*leading ldim rank"], Float[Tensor, "*leading rank"], Float[Tensor, "*leading rank rdim"]
    ]:
        """U, S, Vh with U diag(S) Vh = A B, as `torch.linalg.svd` has them; `rank` is the shortest of the axes."""
        return self._svd

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        left, right = torch.linalg.qr(self.A), torch.linalg.qr(self.B.mT)
        U, S, Vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
        return left.Q @ U, S, Vh @ right.Q.mT

    @property
    def U(self) -> Float[Tensor, "*leading ldim rank"]:
        return self._svd[0]

    @property
    def S(self) -> Float[Tensor, "*leading rank"]:
        return self._svd[1]

    @property
    def Vh(self) -> Float[Tensor, "*leading rank rdim"]:
        return self._svd[2]

    def top_singular_vectors(
        self, k: int = 1
    ) -> tuple[Float[Tensor, "*leading ldim k"], Float[Tensor, "*leading k"], Float[Tensor, "*leading k rdim"]]:
        """U, S, Vh of the k greatest singular values."""
        if not 1 <= k <= self.S.shape[-1]:
            raise ValueError(f"k={k}; allowed: 1 to {self.S.shape[-1]}, the singular values of {self!r}")
        return self.U[..., :k], self.S[..., :k], self.Vh[..., :k, :]

    def make_even(self) -> "FactoredMatrix":
        """The same matrix, with the singular values split evenly between the factors."""
        U, S, Vh = self._svd
        root = S.sqrt()
        return type(self)(U * root[..., None, :], root[..., :, None] * Vh)

    def collapse_l(self) -> Float[Tensor, "*leading rank rdim"]:
        """S Vh: the matrix up to a rotation on its left, which leaves products and norms on its right as they are."""
        _, S, Vh = self._svd
        return S[..., :, None] * Vh

    def collapse_r(self) -> Float[Tensor, "*leading ldim rank"]:
        """U S: the matrix up to a rotation on its right."""
        U, S, _ = self._svd
        return U * S[..., None, :]

    def _check_square(self, what: str) -> None:
        if self.ldim != self.rdim:
            raise ValueError(f"only a square matrix has {what}; this one is {self.ldim} × {self.rdim}")


def _kept(index: Index, size: int) -> Index:
    """An index that keeps its axis."""
    if not isinstance(index, int):
        return index
    if not -size <= index < size:
        raise IndexError(f"index {index} of an axis of length {size}")
    return slice(index % size, index % size + 1)


def _check_inner(left: torch.Size, right: torch.Size) -> None:
    rows = right[-2] if len(right) > 1 else right[-1]
    if left[-1] != rows:
        raise ValueError(f"shapes {list(left)} and {list(right)} do not fit: {left[-1]} columns against {rows} rows")


def _pair(A: Tensor, B: Tensor) -> str:
    return f"{list(A.shape)} and {list(B.shape)}"
