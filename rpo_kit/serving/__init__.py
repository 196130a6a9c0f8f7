"""What one takes home: the personalizer behind an OpenAI-compatible endpoint.

`server` is the HTTP side, `incoming` its limits, `messages` the form of requests and responses. How a
rewrite is made belongs to `rewriting`.
"""
