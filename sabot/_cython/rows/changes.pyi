from typing import Any

class Touches:
    """Finds the slots that a batch touches, without sorting: it keeps 4 bytes for each slot seen so far. Has one owner."""

    def of(self, slots: Any, times: Any = None) -> tuple[Any, Any, Any, Any]:
        """slots: numpy int32, none below 0 (IndexError); times: numpy int64, one per row, or None.

        Returns (the distinct slots, in the order of their first rows; the first row of each; for each row the place of its slot among
        them; the latest time of each slot, where times are given).
        """

def weave(taken: Any, added: Any) -> tuple[Any, Any, Any]:
    """The changes of the rows of n keys: a key's old row is removed where `taken`, its new row is added where `added` (numpy bool). Where
    both are true, the two changes are an update pair.

    Returns (for each change the place of its key, int32; that place, plus n where the change is the new row, int32; its op, int8).
    """

def woven(before: Any, after: Any, choice: Any) -> Any:
    """For each choice c: before[c] where c is below n, after[c - n] otherwise; `before` and `after` have n values (numpy int64). Raises
    IndexError for a choice beyond both.
    """
