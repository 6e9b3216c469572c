"""Programs of less than 30 lines. From the project's folder: `python -m examples.word_count`, `sabot run examples.app:app`."""
