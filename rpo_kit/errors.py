"""The one exception a user is meant to read: a sentence saying what was wrong, where, and what to do."""


class KitError(ValueError):
    """Something the user can put right; the message names the file, id or setting and the remedy."""
