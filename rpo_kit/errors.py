"""The exception whose message is written for the user: what was wrong, with which input, and what to do."""


class KitError(ValueError):
    """An error that the user can fix; the message names the file, id or setting and the remedy."""
