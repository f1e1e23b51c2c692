"""`python -m eplbd`: the command line."""

from eplbd.cli import main

if __name__ == "__main__":
    main()
