"""Text repairs that several rooms need."""


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which neither UTF-8, nor Arrow, nor a tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")
