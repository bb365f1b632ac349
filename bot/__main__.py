"""`python -m bot`."""

import sys

try:
    from bot.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"llamacord: The Python package {error.name} is not installed for {sys.executable}. "
        "Start with `make run`, which installs everything into .venv."
    )

if __name__ == "__main__":
    sys.exit(main())
