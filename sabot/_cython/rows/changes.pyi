from typing import Any

class Touches:
    """Finds the slots that a batch touches, without sorting: it keeps 4 bytes for each slot that there has been. One owner."""

    def of(self, slots: Any, times: Any = None) -> tuple[Any, Any, Any, Any]:
        """slots: numpy int32, none below 0 (IndexError); times: numpy int64, one a row.

        -> (each slot once, as they come first; the first row of each; for each row the place of its slot among them; the latest time
        of each slot, where there are times).
        """

def weave(taken: Any, added: Any) -> tuple[Any, Any, Any]:
    """What becomes of the rows of n keys: the row before goes where `taken`, the row after comes where `added` (numpy bool).

    -> (for each change its key's place, int32; that, + n where it is the row after, int32; its op, int8). Both of a key are a pair.
    """

def woven(before: Any, after: Any, choice: Any) -> Any:
    """numpy int64, of n rows each: before[c] for each choice c below n, after[c - n] for the others (IndexError beyond)."""
