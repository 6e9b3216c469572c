"""What documents name beside `sabot.mcp`: `sessions` and `documents` are typed clients for servers that keep sessions of
agents or documents, over `bridges`; `memory` has the tools of a server for the memory of agents.
"""
