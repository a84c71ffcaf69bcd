"""``python -m maypole run [--] COMMAND...`` runs a program whose Gloo is Maypole."""

import os
import shutil
import sys

__all__ = ["main"]

_USAGE = "usage: python -m maypole run [--] COMMAND..."


def main(arguments: list[str]) -> int:
    """Replaces this process by the command. Returns only if it cannot."""
    if not arguments or arguments[0] != "run":
        print(_USAGE, file=sys.stderr)
        return 2
    command = arguments[2:] if arguments[1:2] == ["--"] else arguments[1:]
    if not command:
        print(_USAGE, file=sys.stderr)
        return 2
    if shutil.which(command[0]) is None:
        print(f"maypole run: there is no program {command[0]}", file=sys.stderr)
        return 127
    # The entry point of the package reads it when the command's Python imports torch.
    os.environ["MAYPOLE_AS_GLOO"] = "1"
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
