"""The trained personalizer behind an OpenAI-compatible endpoint.

`server` speaks HTTP; `incoming` checks and limits what a client sends, `access` whom they may speak for. `messages`
reads requests, `service` answers them with one of the models in `stages`, several `together`, from the histories in
`profiles`; `responses` and `streaming` write what is sent. How a rewrite is made belongs to `rewriting`.
"""
