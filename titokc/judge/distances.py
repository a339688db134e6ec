"""Distances between two sets of feature vectors: Frechet's, and that of a kernel. NumPy alone."""

import numpy as np

BLOCK = 1000


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of vectors [n, D], [m, D] (arXiv 1706.08500, eq. 6).

    With A'A and B'B the covariances, tr sqrt(A'A B'B) is the sum of the singular values of A B', and A and B can be the
    triangles of QR decompositions: exact also for fewer vectors than dimensions.
    """
    means, triangles = zip(*(_gaussian(vectors) for vectors in (a, b)), strict=True)
    difference = means[0] - means[1]
    cross = np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum()
    spread = sum(float(np.square(triangle).sum()) for triangle in triangles)
    return float(difference @ difference + spread - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of two sets [n, D], [m, D] with the kernel (x y / D + 1)^3 (KID, arXiv 1801.01401).

    Of the whole sets at once: up to 1,000 vectors what torch-fidelity gives; beyond, it takes random subsets. Unbiased:
    a little below 0 for sets that are alike.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    within = sum((_kernels(x, x) - _own(x)) / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(within - 2 * _kernels(a, b) / (len(a) * len(b)))


def _gaussian(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and R with R'R the covariance."""
    vectors = vectors.astype(np.float64)
    mean = vectors.mean(0)
    triangle: np.ndarray = np.linalg.qr((vectors - mean) / np.sqrt(len(vectors) - 1), mode="r")  # type: ignore[assignment]
    return mean, triangle


def _kernels(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of the kernel over all pairs."""
    blocks = (a[start : start + BLOCK] for start in range(0, len(a), BLOCK))
    return sum(float(((block @ b.T / a.shape[1] + 1) ** 3).sum()) for block in blocks)


def _own(a: np.ndarray) -> float:
    """The sum of the kernel of each vector with itself."""
    return float(((np.square(a).sum(1) / a.shape[1] + 1) ** 3).sum())
