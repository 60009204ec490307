"""A hook of mkdocs: links to files of the repository become plain text on the site, which has only the pages."""

import re


def on_page_markdown(markdown: str, **_) -> str:
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
