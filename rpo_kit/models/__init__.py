"""Models that answer: the `Chat` protocol, the model in this process, and any OpenAI-compatible endpoint.

This room loads models and samples from them, and holds what an endpoint needs: retries, a budget, a cache and keys. It
knows nothing of LaMP, profiles or rewriting: a conversation goes in, a completion comes out.
"""
