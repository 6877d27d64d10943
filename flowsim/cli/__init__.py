"""The command line: `flowsim reproduce | claims | simulate | sweep | animate | compare | measure | check`, and
`flowsim clip`.

Each command has its own file.
"""

from flowsim.cli.entry import main

__all__ = ["main"]
