"""What still runs of what a test started: the servers that tests share are children of the same process."""

import contextlib

import psutil


def children_that_name(word: str) -> list[str]:
    """The command lines of this process's living children in which the word occurs."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie's is one of these
            if word in (line := " ".join(child.cmdline())):
                found.append(line)
    return found
