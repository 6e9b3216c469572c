"""Programs that show the engine at work. `sabot demo NAME` runs them."""
