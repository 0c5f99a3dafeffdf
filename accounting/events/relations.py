"""What "one person's data" means: which two datasets a guarantee compares.

Every epsilon is printed with its relation, because the same number says more under
REPLACE_ONE than under ADD_OR_REMOVE_ONE.
"""

import enum


class NeighboringRelation(enum.Enum):
    """Which pairs of datasets the guarantee must make hard to tell apart."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"
    ZERO_OUT = "zero_out"

    @property
    def description(self) -> str:
        """One sentence in plain English that says what is compared."""
        return self.describe("one example")

    def describe(self, unit: str) -> str:
        """The same sentence for another unit than one example."""
        return _DESCRIPTIONS[self].format(unit=unit)

    def sensitivity(self, l2_norm_clip: float) -> float:
        """Largest l2 change of a sum of clipped rows between neighboring datasets.

            C for adding, removing or zeroing one row;  2 C for replacing it

        The replaced row may point the other way, hence the factor two.

        Args:
            l2_norm_clip: C > 0, the norm that no row exceeds.

        Returns:
            The l2 sensitivity, in units of the clip.

        Raises:
            ValueError: l2_norm_clip <= 0 or NaN.

        >>> NeighboringRelation.REPLACE_ONE.sensitivity(1.5)
        3.0
        """
        if not l2_norm_clip > 0:
            raise ValueError(
                f"l2_norm_clip is {l2_norm_clip!r}, which is not above 0. A row that"
                " may have any norm can change the sum by any amount, so nothing"
                " hides it. Pass the positive clip norm that was applied."
            )
        factor = 2 if self is NeighboringRelation.REPLACE_ONE else 1
        return factor * l2_norm_clip


_DESCRIPTIONS = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: (
        "Compares training with {unit} to training without, so even the presence in the"
        " data stays uncertain."
    ),
    NeighboringRelation.REPLACE_ONE: (
        "Compares training with {unit} to training with any other in the same place;"
        " the number of examples is treated as public."
    ),
    NeighboringRelation.ZERO_OUT: (
        "Compares training with {unit} to training where that place stays empty and"
        " contributes nothing; the number of places is treated as public."
    ),
}
