"""A kernel machine that tells danger from ordinary talk.

Axes: N texts, F features of the encoder, K principal components, S support vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.head_features import Floats

Real = NDArray[np.float64]
COMPONENTS, PENALTY, GAMMA = 256, 3.0, 0.3


def platt(margin_N: Real, slope: float, offset: float) -> Real:
    """p(danger) of a margin, `[N]`: the logistic curve of `DangerKernel`."""
    return 1 / (1 + np.exp(-(slope * margin_N + offset)))


@dataclass(frozen=True)
class DangerKernel:
    """A support vector classifier with Gaussian kernel on principal components, and Platt's probability (Platt 1999):

        z = P (x - mu),   m(x) = sum_s a_s exp(-gamma |z - z_s|^2) + b,   p(danger | x) = 1 / (1 + exp(-(slope m + offset)))

    What is kept of it is rounded to 16 bits, and computed with as such.
    """

    mean_F: Floats
    components_KF: Floats
    support_SK: Floats
    weight_S: Floats
    bias: float
    gamma: float
    slope: float = 1.0
    offset: float = 0.0

    def margins(self, x_NF: Floats) -> Real:
        """m(x), `[N]`."""
        z_NK = (x_NF - self.mean_F) @ self.components_KF.T
        squares_NS = (
            (z_NK**2).sum(1)[:, None] + (self.support_SK**2).sum(1) - 2 * z_NK @ self.support_SK.T
        ).clip(min=0)  # fmt: skip
        return (np.exp(-self.gamma * squares_NS) @ self.weight_S + self.bias).astype(np.float64)

    def probabilities(self, x_NF: Floats) -> Real:
        """p(danger | x), `[N]`."""
        return platt(self.margins(x_NF), self.slope, self.offset)

    def takes(self, features: int) -> bool:
        """Whether its parts fit one another, and texts of so many features."""
        vectors, components = len(self.weight_S), len(self.components_KF)
        found = (self.mean_F.shape, self.components_KF.shape, self.support_SK.shape, self.weight_S.shape)
        return found == ((features,), (components, features), (vectors, components), (vectors,))

    def to_bytes(self) -> bytes:
        """The file that `read` reads."""
        from safetensors.numpy import save

        kept = {
            "mean": self.mean_F,
            "components": self.components_KF,
            "support": self.support_SK,
            "weight": self.weight_S,
            "numbers": np.array([self.bias, self.gamma, self.slope, self.offset], dtype=np.float32),
        }
        return save({n: np.ascontiguousarray(a if n == "numbers" else a.astype(np.float16)) for n, a in kept.items()})

    @classmethod
    def read(cls, file: Path) -> DangerKernel:
        """What `to_bytes` wrote. Raises OSError, ValueError, KeyError or SafetensorError for anything else."""
        from safetensors.numpy import load_file

        kept = {name: array.astype(np.float32) for name, array in load_file(file).items()}
        return cls(kept["mean"], kept["components"], kept["support"], kept["weight"], *map(float, kept["numbers"]))


def fit_kernel(x_NF: Floats, danger_N: NDArray[np.bool_], seed: int) -> DangerKernel:
    """Fit to labelled texts, both classes weighted alike; slope and offset are left at 1 and 0 (see `platt`)."""
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

    components = min(COMPONENTS, *x_NF.shape)
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(x_NF)
    mean_F, components_KF = _rounded(pca.mean_), _rounded(pca.components_)
    z_NK = (x_NF - mean_F) @ components_KF.T
    svc = SVC(C=PENALTY, gamma=GAMMA, class_weight="balanced").fit(z_NK, danger_N)
    weight_S = _rounded(svc.dual_coef_[0])
    return DangerKernel(
        mean_F, components_KF, _rounded(svc.support_vectors_), weight_S, float(np.float32(svc.intercept_[0])), GAMMA
    )


def fit_platt(margin_N: Real, danger_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the most likely logistic curve through margins of texts that the machine had not seen."""
    from sklearn.linear_model import LogisticRegression

    curve = LogisticRegression(C=1e6).fit(margin_N[:, None], danger_N)
    return round(float(curve.coef_[0, 0]), 4), round(float(curve.intercept_[0]), 4)


def _rounded(values: NDArray[np.float64]) -> Floats:
    return values.astype(np.float16).astype(np.float32)
