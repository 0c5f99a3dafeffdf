"""Where releases are charged, and as what: only as samplings of the library."""

from __future__ import annotations

from accounting import GaussianEvent, Ledger
from dp_train.batches import UsedDraw
from dp_train.draws import Draws
from dp_train.errors import NotPrivateError
from dp_train.owner import Owner
from dp_train.sampling import PoissonSampling, UnverifiedSampling
from dp_train.values import Sampling

_KINDS = PoissonSampling, UnverifiedSampling, UsedDraw, Draws
"""Samplings whose events are proved for what they draw; a subclass may draw others."""


class Account:
    """The weights' owner, and how the batch of a release was drawn.

    The sampling may be exchanged between fits; the compiled step asks at run time.

    Attributes:
        owner: of the weights that the releases move.
        least_noise_multiplier: what a budget counts on: with less, fewer steps fit.
        refusal: why the last charge was refused: TensorFlow tells it in its own words.
    """

    def __init__(self, owner: Owner, sampling: Sampling | None = None) -> None:
        self.owner, self.sampling = owner, sampling
        self.least_noise_multiplier = 0.0
        self.refusal: NotPrivateError | None = None

    @property
    def sampling(self) -> Sampling | None:
        """How batches are drawn; None where no release may be made.

        Raises:
            NotPrivateError: set, to a sampling that is not the library's own.
        """
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling | None) -> None:
        if sampling is not None and type(sampling) not in _KINDS:
            raise NotPrivateError(
                f"Releases were to be charged by {type(sampling).__name__}, which is "
                "no sampling of this library. It would say by itself what its draws "
                "cost, and nothing shows that it draws so. Pass arrays or a "
                "PoissonLoader to fit, or loader.dataset_for(optimizer) to the fit of "
                "a plain model."
            )
        self._sampling = sampling

    @property
    def ledger(self) -> Ledger:
        """Every release that the owner knows."""
        return self.owner.ledger

    def charge(
        self,
        noise_multiplier: float,
        l2_norm_clip: float,
        noise_source: str,
        digest: int | None = None,
    ) -> None:
        """Records one release; called before its noise leaves the generator.

        Args:
            noise_multiplier, l2_norm_clip, noise_source: of the release.
            digest: of its rows.

        Raises:
            NotPrivateError: no sampling was declared for this release, its rows are no
                draw that is unused, or it has less noise than a budget counts on.
        """
        try:
            self._charge(noise_multiplier, l2_norm_clip, noise_source, digest)
        except NotPrivateError as error:
            self.refusal = error
            raise

    def _charge(
        self,
        noise_multiplier: float,
        l2_norm_clip: float,
        noise_source: str,
        digest: int | None,
    ) -> None:
        if self.sampling is None:
            raise NotPrivateError(
                "A release was about to be made outside fit, train_on_batch and "
                "apply_clipped_sum. It cannot be accounted, since nothing says how "
                "its batch was drawn. Call one of those three instead."
            )
        if noise_multiplier < self.least_noise_multiplier:
            raise NotPrivateError(
                f"A release was about to be made with noise_multiplier="
                f"{noise_multiplier:g}, and BudgetStop counts on at least "
                f"{self.least_noise_multiplier:g} until fit ends. Its steps would "
                "exceed the budget. Lower the noise between two fits."
            )
        self.sampling.pay(digest)
        if isinstance(self.sampling, UsedDraw) and self.sampling.are_others_left_out:
            self.ledger.remark(
                "chosen_by_looking",
                "batches of another loader of the same examples were not released",
            )
        self.owner.charge(
            self.sampling.event(GaussianEvent(noise_multiplier)),
            l2_norm_clip=l2_norm_clip,
            noise_source=noise_source,
        )
