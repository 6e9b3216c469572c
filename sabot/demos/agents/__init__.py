"""The agents demo, `sabot demo agents`: a model with tools answers tickets, asks a person, refunds orders, and is
killed twice.
"""
