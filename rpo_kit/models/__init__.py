"""Models that answer: the `Chat` protocol, the model in this process, and any OpenAI-compatible endpoint.

Here live loading, sampling, and what an endpoint needs: retries, a budget, a cache and keys. Nothing in here knows
LaMP, profiles or rewriting: a conversation goes in, a completion comes out.
"""
