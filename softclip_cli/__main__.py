"""`python -m softclip_cli` is `softclip`."""

from softclip_cli.app import main

main()
