"""Many children that do one kind of work: a pool of warm ones, a fleet that grows and shrinks, and their health."""
