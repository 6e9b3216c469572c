"""Steps that call users' coroutine functions for rows: `map_async`, `lookup` with a function, `map_llm`."""
