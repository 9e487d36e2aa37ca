"""The settings of the algorithm. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.settings import require_at_least

Estimator = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp"]
_GROUPS = ("grpo", "dr_grpo", "rloo")  # compare the replies to one prompt


@dataclass(frozen=True)
class PpoConfig:
    """The algorithm. Defaults are those of the psychologist study where it states them, else the house's.

    `estimator` says where advantages come from (`rl.advantages`), and with it where the KL penalty stands and over what the loss
    averages; all but `gae` train no critic, and the settings of one (`lam`, `value_*`, `critic_lr`) mean nothing to them:

        gae           critic                      KL paid per token in the reward   mean over tokens
        grpo          group's mean and deviation  KL in the loss                    mean over replies of their mean
        dr_grpo       group's mean                KL in the loss                    sum over a reply's tokens / sampling.max_tokens
        rloo          mean of the group's others  KL of the reply in its reward     as dr_grpo
        reinforce_pp  whole batch, whitened       KL paid per token in the reward   mean over tokens
    """

    estimator: Estimator = "gae"
    epochs: int = 4
    minibatches: int = 1
    policy_lr: float = 1.4e-5
    critic_lr: float = 1e-4
    lr_warmup: int = 0  # updates over which the learning rates rise from 0
    lr_final: float = 1.0  # share of the learning rates left at the end of the run (linear)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    balance_coef: float = 0.01  # MoE load balancing
    importance_cap: float | None = 2.0  # truncated importance weights between engine and learner; None: off
    # tokens whose ratio of learner to engine lies outside do not train the policy; (0.5, 5.0) is IcePop's
    importance_mask: tuple[float, float] | None = None
    # what a reply cut by the budget earns: see `PpoLearner.annotate`; auto: bootstrap where there is a critic
    truncated: Literal["auto", "bootstrap", "score"] = "auto"
    whiten: bool = True  # gae's advantages
    # k1 in the reward, k3 in the loss, where k1 has no gradient on average
    kl: Literal["auto", "k1", "k2", "k3"] = "auto"
    kl_coef: float = 0.2
    kl_target: float | None = 6.0  # nats per reply; None keeps the coefficient fixed
    kl_horizon: int = 10_000  # replies
    kl_stop: float | None = None  # ends a step's epochs when KL(old || new) per token exceeds it

    def __post_init__(self) -> None:
        require_at_least(1, "ppo.", self, "epochs", "minibatches", "kl_horizon")
        require_at_least(0, "ppo.", self, "lr_warmup")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} must lie in [0, 1], is {getattr(self, name)}")
        for name in ("policy_lr", "critic_lr", "clip_low", "clip_high", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ppo.{name} must be above 0, is {getattr(self, name)}")
        low, high = self.importance_mask or (0.0, 1.0)
        if not 0 <= low < 1 <= high:
            raise ValueError(
                f"ppo.importance_mask must be two ratios with 0 <= low < 1 <= high, is {low:g} and {high:g}; 0.5 and 5 are usual"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"ppo.dual_clip must be above 1, is {self.dual_clip}; 3 is usual, None turns it off")
        if self.truncated == "bootstrap" and not self.has_critic:
            raise ValueError(
                f'ppo.truncated must be "score" or "auto" with ppo.estimator = {self.estimator}, is "bootstrap": there is no '
                'critic to say what would have come; set "auto"'
            )
        if self.kl == "k1" and self.kl_in_loss:
            raise ValueError(
                f'ppo.kl must be "k2" or "k3" with ppo.estimator = {self.estimator}, is "k1": in the loss its gradient is 0 on '
                'average; set "auto"'
            )

    @property
    def has_critic(self) -> bool:
        """Whether a critic trains."""
        return self.estimator == "gae"

    @property
    def has_groups(self) -> bool:
        """Whether replies are compared with others to the same prompt."""
        return self.estimator in _GROUPS

    @property
    def bootstraps(self) -> bool:
        """Whether the critic says what a reply that was cut short would have earned."""
        return self.has_critic and self.truncated != "score"

    @property
    def kl_in_loss(self) -> bool:
        """Whether the KL penalty is a term of the loss instead of the reward."""
        return self.estimator in ("grpo", "dr_grpo")

    def update_says_logprobs(self, *, micro_batches: int, sparse: bool) -> bool:
        """Whether the policy's log-probs before the update may be left to the update's own forward passes: it is the step's only
        one, advantages need none, and the load balancing loss (of a `sparse` model) knows every choice of expert before the first
        backward pass."""
        return self.epochs * self.minibatches == 1 and self.kl_in_loss and (micro_batches == 1 or not sparse)

    @property
    def kl_kind(self) -> Literal["k1", "k2", "k3"]:
        """The KL's estimate (`rl.advantages.kl_penalty`)."""
        if self.kl == "auto":
            return "k3" if self.kl_in_loss else "k1"
        return self.kl

    @property
    def average(self) -> Literal["token", "reply", "budget"]:
        """What the policy's loss averages over (`rl.losses.reply_weights`)."""
        return {"grpo": "reply", "dr_grpo": "budget", "rloo": "budget"}.get(self.estimator, "token")  # type: ignore[return-value]
