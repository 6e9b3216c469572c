"""NDJSON in, NDJSON out, bad lines in a file of their own: python examples/files.py IN OUT. It ends with the file."""

import sys

from sabot import App
from sabot.connectors.files import NdjsonSink, NdjsonSource


def celsius(source, sink):
    app = App("celsius", checkpoint_dir=f"{sink}.checkpoints")

    @app.agent(NdjsonSource(source), sink=NdjsonSink(sink), on_error="skip", dead_letter=NdjsonSink(f"{sink}.bad"))
    async def convert(ctx):
        degrees = (ctx.message["fahrenheit"] - 32) / 1.8
        return {**ctx.message, "celsius": round(degrees, 1)}

    return app


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give it two files: python examples/files.py IN OUT")
    celsius(*sys.argv[1:]).main()
