"""The ground: what any room may use, and what knows no room. Clocks, crash points and errors, which programs of users import too, stand
beside it as `sabot.clock`, `sabot.steps` and `sabot.errors`.
"""
