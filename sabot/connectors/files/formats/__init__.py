"""The formats of files: how the bytes of one file are rows. Which files there are, which part of them a reader reads, and how parts of
a folder become complete is the matter of `connectors.files`, the same for each format.

    base                what a format is: it reads blocks of rows, and writes them
    text, columns       what formats of text have in common, and those of columns
    ndjson, csv, parquet, arrow
    lines               lines that are values as they are, for SQL
    table               the formats by name
"""
