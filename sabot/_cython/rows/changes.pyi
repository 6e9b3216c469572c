from typing import Any

class Touches:
    """Finds the distinct slots in a batch without sorting. It keeps 4 bytes for each slot seen so far. Has one owner
    thread.
    """

    def of(self, slots: Any, times: Any = None) -> tuple[Any, Any, Any, Any]:
        """Finds the distinct slots of a batch. `slots`: numpy int32, none below 0 (IndexError). `times`: numpy int64,
        one per row, or None.

        Returns (the distinct slots, in the order of their first rows; the first row of each; for each row the index
        of its slot among them; the latest time of each slot, if there are times).
        """

def weave(taken: Any, added: Any) -> tuple[Any, Any, Any]:
    """Lists the changes of n keys: a key's old row is removed if `taken`, its new row is added if `added` (numpy
    bool). If both are true, the two changes are an update pair.

    Returns for each change: the index of its key (int32); an index for `woven`, which is that of the key for the old
    row, plus n for the new row (int32); and its op (int8).
    """

def woven(before: Any, after: Any, choice: Any) -> Any:
    """Returns before[c] for each choice c below n, and after[c - n] for any other. `before` and `after` have n values
    (numpy int64). Raises IndexError for a choice outside of both.
    """
