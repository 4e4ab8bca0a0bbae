"""What the order of rows depends on, and the random keys that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from schemas.fingerprint import fingerprint
from schemas.train import RowFilter, RowOrder

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class OrderKey:
    """What decides the sequence of rows of every epoch. Ranks, batch size and hook points are not in it."""

    store_fingerprint: str
    rows: RowFilter
    split: Split
    order: RowOrder
    first_in_order: bool = False
    """The first epoch is in the order of the store, whatever ``order.mode`` says: its rows are still being made."""

    def is_sequential(self, epoch: int) -> bool:
        """Whether the windows of an epoch are in the order of the store."""
        return self.order.mode == "sequential" or (self.first_in_order and epoch == 0)

    def facts(self) -> dict[str, Any]:
        """As canonical JSON takes it."""
        facts = {
            "store": self.store_fingerprint,
            "rows": self.rows.model_dump(mode="json"),
            "split": self.split,
            # The mode that there always was is not named, so that runs which know no other go on in the same order.
            "order": self.order.model_dump(mode="json", exclude={"mode"} if self.order.mode == "shuffled" else set()),
        }
        if self.first_in_order and self.order.mode == "shuffled":
            facts["first_epoch"] = "sequential"
        return facts

    def derive(self, purpose: str, **numbers: int) -> int:
        """A key of 128 bits: the SHA-256 of the facts, what the key is for, and the numbers of epoch and window."""
        return int(fingerprint({**self.facts(), "purpose": purpose, **numbers})[:32], 16)
