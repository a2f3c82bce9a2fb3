"""`python cli.py ...` from a checkout does what `featcache ...` does."""

from featcache.cli import main

if __name__ == "__main__":
    main()
