"""Nexmark: people who open auctions and bid, and 23 queries over them."""
