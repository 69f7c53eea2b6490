"""Thin Typer modules, one a subcommand: options in, one library call, result out."""
