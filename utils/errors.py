"""What a stage says when the user must act."""


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, what is wrong with it and what to do."""
