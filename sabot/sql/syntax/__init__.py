"""From the text of SQL to its syntax tree.

`text` has positions and errors, `tokens` the lexer, `tree` the nodes. The parser is a recursive descent in four steps,
each a class on top of the one before: `cursor`, `expressions`, `queries`, `parser`.
"""
