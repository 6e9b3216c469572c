"""Dead letters: records that could not be processed. Written by every room of the engine; read, and sent back, by people.

Written, each with its origin and its error:

    form        the form: headers of a record in a topic, columns in a file or table; how both are read again
    refused     rows that the receiver of a sink refuses: which these are, and their dead letters
    log         counts by reason, and lines of the log

Read:

    places      the contract of a place (`Home`), and its dead letters in order (`Letters`)
    files, tables, memory, topics      the places: NDJSON files, tables of SQL, topics of the embedded broker and of Kafka
    opening     the places into which an app writes, opened by their kind
    pages       filters, pages and counts, for `sabot dlq` and the console

Sent back (redriven), each once:

    redrive     which ones, and to which topics; the contract of a broker's half (`Redriver`)
    memory, kafka.redrive      the brokers' halves: a record and the note that it was sent are one step
    late        those that the app would find late again

The modules stand in the order of `tests/test_layers`, each by itself: `form` to `redrive` import no connector, so that
sinks, operators and brokers can import them; the places import connectors; `opening`, `pages` and `late` know the app.
This package imports nothing, because a source of a program that never reads dead letters loads `form` and `log`.
"""
