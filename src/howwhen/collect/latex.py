"""What little LaTeX has to be read outside a library."""


def closing_brace(text: str, start: int, most: int | None = None) -> int | None:
    """Just after the brace that closes the one before `start`.

    Args:
        text: LaTeX.
        start: the first character inside the braces.
        most: characters to look at; all where None.

    Returns:
        None where the brace is not closed within them.
    """
    depth = 1
    for index in range(start, len(text) if most is None else min(len(text), start + most)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return None
