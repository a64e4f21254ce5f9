"""`python -m qrs`."""

from .cli import main

main()
