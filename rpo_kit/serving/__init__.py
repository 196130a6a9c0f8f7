"""What one takes home: the trained personalizer as an endpoint, and the reflection module as files for other programs.

`server` speaks HTTP; `incoming` checks and limits what a client sends, `access` whom they may speak for. `messages`
reads requests, `service` answers them with one of the models in `stages`, several `together`, from the histories in
`profiles`; `responses` and `streaming` write what is sent. `export` writes an adapter, a merged model, a GGUF
(`gguf_*`) or what Ollama and vLLM need (`export_files`), each with a model card (`card*`). How a rewrite is made
belongs to `rewriting`.
"""
