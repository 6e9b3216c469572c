"""A program for each record, once, whatever kills the app: its lines are a topic. Run it: sabot run examples.cli_agents:app
With claude: command=["claude", "-p", "Review: {text}", "--output-format", "stream-json", "--verbose"], lines="json", and
resume=["claude", "-p", "Go on", "--resume", "{session}", "--output-format", "stream-json", "--verbose"]."""

from sabot import App
from sabot.process import ResourceLimits
from sabot.testing import MemoryBroker

app = App("reviews", state="state")
app.process_agent(
    "reviews",
    name="reviewer",
    command=["sh", "-c", 'echo "reading $1"; echo "$1 has $(wc -w) words"', "sh", "{file}"],
    stdin=True,  # it gets the record there too, as JSON
    sink="said",
    durable=True,
    on_error="skip",
    limits=ResourceLimits(max_memory_mb=512, max_runtime_secs=60),
)
shout = ["sh", "-c", 'while read -r line; do echo "$line" | tr a-z A-Z; done']  # it lives on, and gets all records
app.process_agent("said", name="shouter", command=shout, pool=1, sink="shouted", lines="json")


@app.agent("shouted")
async def show(ctx):
    print(ctx.message, flush=True)


MemoryBroker.get().publish("reviews", [{"file": "a.txt", "text": "three short words"}])
