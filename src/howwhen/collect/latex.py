"""The bit of LaTeX that is parsed here rather than by a library: matching braces."""


def closing_brace(text: str, start: int, max_characters: int | None = None) -> int | None:
    """Index just after the brace that closes the one before `start`.

    Args:
        text: LaTeX.
        start: the first character inside the braces.
        max_characters: characters to search; defaults to all.

    Returns:
        None if the brace is not closed within them.
    """
    depth = 1
    end = len(text) if max_characters is None else min(len(text), start + max_characters)
    for index in range(start, end):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return None
