"""`python -m ckpttool` is the command."""

from ckpttool.cli import main

main()
