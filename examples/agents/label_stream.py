"""A model labels the rows of a stream; equal texts are asked once. Run it: python examples/agents/label_stream.py"""

import json

from models import model

from sabot import App, files
from sabot.llm import ExecutionEngine

TEXTS = ["It came broken.", "Where is my parcel?", "Thank you!", "Where is my parcel?", "It came broken."]


def script(request):
    text = request.messages[-1].text.partition(": ")[2]
    label = {"I": "complaint", "W": "question", "T": "praise"}[text[0]]
    return json.dumps({"label": label, "urgent": label == "complaint"})


def main():
    with open("tickets.ndjson", "w") as file:
        file.writelines(json.dumps({"id": id, "text": text}) + "\n" for id, text in enumerate(TEXTS))
    with model(script) as provider:
        engine = ExecutionEngine(provider)
        tickets = App("labels").stream(files("tickets.ndjson"), schema={"id": "int64", "text": "string"})
        output = {"label": "string", "urgent": "bool"}
        instructions = "Labels are: complaint, question, praise."
        tickets.map_llm("Label: {text}", engine, output=output, instructions=instructions, temperature=0).print()
        print(engine.statistics()["attempts"], "requests for", len(TEXTS), "tickets")


if __name__ == "__main__":
    main()
