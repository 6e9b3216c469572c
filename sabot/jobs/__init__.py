"""Jobs: durable runs of a function, over the journal of what it has asked for. `loop` is the event loop that each of them runs on."""
