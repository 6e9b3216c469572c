"""How steps are put into a plan."""
