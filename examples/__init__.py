"""Programs of less than 30 lines. From the project's folder: `sabot run examples.app:app`, `python examples/kafka_alerts.py`."""
