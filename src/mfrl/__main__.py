"""`python -m mfrl`, where the command is not on the path."""

from mfrl.app.cli import main

if __name__ == "__main__":  # worker processes import this module again
    main()
