"""A factored matrix is held against the matrix multiplied out, in every operation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.weights import FactoredMatrix

close = torch.testing.assert_close


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def factored(draw: st.DrawFn, square: bool = False) -> FactoredMatrix:
    """Any sizes, wider than long too; leading axes of either factor may be short, and broadcast."""
    ldim, mdim, rdim = (draw(st.integers(1, 7)) for _ in range(3))
    rdim = ldim if square else rdim
    leading = draw(st.lists(st.integers(1, 3), max_size=2))
    short = [[draw(st.sampled_from([1, size])) for size in leading] for _ in range(2)]
    A, B = (normal(*axes, *shape, seed=draw(st.integers(0, 99))) for axes, shape in
            zip(short, ((ldim, mdim), (mdim, rdim)), strict=True))  # fmt: skip
    return FactoredMatrix(A, B)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.untyped_storage().nbytes() // each.element_size())
        return out


@contextmanager
def nothing_larger_than(numel: int) -> Iterator[None]:
    with Largest() as largest:
        yield
    assert largest.numel <= numel


@given(factored())
@settings(deadline=None, max_examples=60)
def test_shape_product_and_transpose_are_those_of_the_matrix(m: FactoredMatrix) -> None:
    assert m.shape == m.AB.shape
    assert m.ndim == m.AB.ndim
    assert m.has_leading_dims == (m.AB.ndim > 2)
    assert (m.ldim, m.rdim) == m.AB.shape[-2:]
    close(m.T.AB, m.AB.mT)
    close(m.T.T.AB, m.AB)
    close(m.get_corner(2), m.AB[..., :2, :2])
    close(m.flatten_leading().AB, m.AB.reshape(-1, m.ldim, m.rdim))
    close(m.unsqueeze(0).AB, m.AB[None])


@given(factored(), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_products_from_both_sides_are_those_of_the_matrix(m: FactoredMatrix, n: int, seed: int) -> None:
    right, left = normal(m.rdim, n, seed=seed), normal(n, m.ldim, seed=seed)
    inner = FactoredMatrix(normal(m.rdim, n, seed=seed + 1), normal(n, 3, seed=seed + 2))
    outer = FactoredMatrix(normal(3, n, seed=seed + 1), normal(n, m.ldim, seed=seed + 2))
    for product, expected in [
        (m @ right, m.AB @ right),
        (left @ m, left @ m.AB),
        (m @ inner, m.AB @ inner.AB),
        (outer @ m, outer.AB @ m.AB),
    ]:
        assert isinstance(product, FactoredMatrix)
        close(product.AB, expected)
        assert product.mdim <= max(m.mdim, 1)
    close(m @ right[:, 0], m.AB @ right[:, 0])
    close(left[0] @ m, left[0] @ m.AB)
    assert (m @ inner).mdim == min(m.mdim, n)


def test_leading_axes_of_products_broadcast() -> None:
    m = FactoredMatrix(normal(4, 1, 5, 2), normal(3, 2, 6))
    other = FactoredMatrix(normal(4, 3, 6, 1), normal(1, 7))
    close((m @ other).AB, m.AB @ other.AB)
    close((m @ normal(3, 6, 8)).AB, m.AB @ normal(3, 6, 8))
    close((normal(4, 1, 8, 5) @ m).AB, normal(4, 1, 8, 5) @ m.AB)


@given(factored())
@settings(deadline=None, max_examples=60)
def test_norm_and_singular_values_are_those_of_the_matrix(m: FactoredMatrix) -> None:
    close(m.norm(), torch.linalg.matrix_norm(m.AB))
    U, S, Vh = m.svd()
    rank = min(m.ldim, m.mdim, m.rdim)
    assert (U.shape[-1], S.shape[-1], Vh.shape[-2]) == (rank,) * 3
    close(U @ torch.diag_embed(S) @ Vh, m.AB)
    close(S, torch.linalg.svdvals(m.AB)[..., :rank], atol=1e-9, rtol=1e-9)
    eye = torch.eye(rank, dtype=torch.float64).expand(*m.shape[:-2], -1, -1)
    close(U.mT @ U, eye)
    close(Vh @ Vh.mT, eye)
    close(m.make_even().AB, m.AB)
    close(torch.linalg.matrix_norm(m.make_even().A), torch.linalg.matrix_norm(m.make_even().B))
    close(m.collapse_l().mT @ m.collapse_l(), m.AB.mT @ m.AB)
    close(m.collapse_r() @ m.collapse_r().mT, m.AB @ m.AB.mT)
    for part, whole in zip(m.top_singular_vectors(1), (U[..., :1], S[..., :1], Vh[..., :1, :]), strict=True):
        close(part, whole)


@given(factored(square=True))
@settings(deadline=None, max_examples=60)
def test_trace_and_eigenvalues_are_those_of_the_matrix(m: FactoredMatrix) -> None:
    close(m.trace, m.AB.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert m.eigenvalues.shape == (*m.shape[:-2], m.mdim)
    power, ours = m.AB, m.eigenvalues
    for exponent in (1, 2, 3):  # sums of powers know all eigenvalues but zeros
        close((ours**exponent).sum(-1).real, power.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-6, atol=1e-6)
        power = power @ m.AB


def test_eigenvalues_are_known_where_the_matrix_is() -> None:
    basis = torch.linalg.qr(normal(9, 9)).Q[:, :3]
    m = FactoredMatrix(basis * torch.tensor([3.0, -2.0, 0.5]), basis.T)
    close(m.eigenvalues.real.sort().values, torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))


@given(factored(), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_a_scalar_multiplies_the_matrix(m: FactoredMatrix, scalar: float) -> None:
    for product in (m * scalar, scalar * m, m * torch.tensor(scalar), torch.tensor(scalar) * m):
        close(product.AB, m.AB * scalar)
    close((-m).AB, -m.AB)
    close((m / 4).AB, m.AB / 4)


def test_an_index_takes_what_it_takes_of_the_matrix() -> None:
    m = FactoredMatrix(normal(2, 1, 5, 3), normal(4, 3, 6))
    some_rows = torch.tensor([True, False, True, True, False])
    for index in [
        1, -1, slice(1, None), ..., (0, 3), (slice(None), 2), (None, 1), (1, ..., slice(2)), (0, 3, slice(1, 4)),
        (..., slice(1, 3), slice(4)), (0, slice(None), slice(2), slice(1, 5)), (..., [4, 0, 2]),
        (..., some_rows, slice(None)), torch.tensor([1, 0, 1]), (torch.tensor([1, 0]), torch.tensor([3, 2])),
    ]:  # fmt: skip
        close(m[index].AB, m.AB[index])  # type: ignore[index]
    close(m[0, 3, 2, 5].AB, m.AB[0, 3, 2, 5].reshape(1, 1))
    close(m[..., -1].AB, m.AB[..., -1:])
    close(m[..., -1, :].AB, m.AB[..., -1:, :])


def test_nothing_forms_the_matrix_but_AB() -> None:
    size, inner = 200, 3
    m = FactoredMatrix(normal(2, size, inner), normal(2, inner, size))
    with nothing_larger_than(size * size // 4):
        m.norm(), m.svd(), m.eigenvalues, m.trace, m.make_even(), m.collapse_l(), m.collapse_r()
        m.top_singular_vectors(2), m.T, m[1, 3:7], m * 2, m.flatten_leading(), m @ m, m @ m.T, m.get_corner()
        m @ normal(size, 5), normal(5, size) @ m, m @ normal(size), normal(size) @ m
    with pytest.raises(AssertionError), nothing_larger_than(size * size // 4):
        m.AB  # noqa: B018


def test_singular_values_are_computed_once() -> None:
    m = FactoredMatrix(normal(5, 2), normal(2, 6))
    assert m.svd()[0] is m.U is m.svd()[0]


def test_small_norms_keep_their_digits() -> None:
    u, v = normal(50, 1, dtype=torch.float32), normal(1, 40, seed=1, dtype=torch.float32)
    m = FactoredMatrix(torch.cat((u, u * (1 + 1e-3)), 1), torch.cat((v, -v), 0))  # nearly cancels: u v 1e-3
    close(m.norm(), 1e-3 * u.norm() * v.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_device_and_gradients_go_through(dtype: torch.dtype) -> None:
    A = normal(5, 2, dtype=dtype).requires_grad_()
    m = FactoredMatrix(A, normal(2, 6, dtype=dtype))
    assert (m.dtype, m.device) == (dtype, A.device)
    assert m.to(torch.float64).dtype == torch.float64
    m.norm().backward()
    close(A.grad, m.AB.detach() @ m.B.T / m.norm().detach())
    assert "[5, 6]" in repr(m)


def test_what_does_not_fit_is_refused() -> None:
    m, square = FactoredMatrix(normal(4, 2), normal(2, 5)), FactoredMatrix(normal(4, 2), normal(2, 4))
    for wrong, message in [
        (lambda: FactoredMatrix(normal(4, 2), normal(3, 5)), r"2 columns and B 3 rows.*\[4, 2\] and \[3, 5\]"),
        (lambda: FactoredMatrix(normal(3, 4, 2), normal(2, 2, 5)), "leading axes"),
        (lambda: FactoredMatrix(normal(4, 2), normal(2, 5).float()), "alike"),
        (lambda: m @ normal(4, 3), "5 columns against 4 rows"),
        (lambda: normal(4, 3) @ m, "3 columns against 4 rows"),
        (lambda: m @ normal(4), "5 columns against 4 rows"),
        (lambda: m @ square.T, "do not fit"),
        (lambda: m.trace, "square.*4 × 5"),
        (lambda: m.eigenvalues, "square"),
        (lambda: m * normal(4, 5), "by a number"),
        (lambda: m.top_singular_vectors(3), "1 to 2"),
        (lambda: m.unsqueeze(1), "dim=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    for index in [(0, 0, 0), (..., None), (4, 0), (..., ..., 0)]:
        with pytest.raises(IndexError):
            m[index]
    with pytest.raises(TypeError):
        m @ "text"  # type: ignore[operator]
