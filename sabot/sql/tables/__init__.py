"""The tables of CREATE TABLE by their connectors, whose options are those of Flink's; `catalog` finds the connector. Topics are in
`topic_options` and `formats`.

    files        'files', 'filesystem'
    databases    'jdbc', 'sqlite', 'duckdb', 'postgres', 'postgres-cdc'
    lakes        'delta', 'iceberg'
    web          'http', 'poll', 'sse', 'webhook', 'websocket'
    generated    'datagen', 'faker'
"""
