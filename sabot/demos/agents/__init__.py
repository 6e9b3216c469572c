"""The agents demo, `sabot demo agents`: a model with tools answers tickets, asks a person, pays money back, and is killed twice."""
