"""The trained personalizer behind an OpenAI-compatible endpoint.

`server` speaks HTTP, `incoming` checks and limits what a client sends, `messages` reads requests and builds responses.
How a rewrite is made belongs to `rewriting`.
"""
