"""What one takes home: the personalizer behind an OpenAI-compatible endpoint.

`server` is the HTTP side, `messages` the form of requests and responses. How a rewrite is made belongs to `rewriting`.
"""
