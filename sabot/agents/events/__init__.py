"""What happens in jobs, told to whoever asks.

bus       events, and who subscribes to them
telling   from the entries of a journal to events
brokers   events in Kafka topics and Redis Streams
otel      events as spans and metrics of OpenTelemetry
"""
