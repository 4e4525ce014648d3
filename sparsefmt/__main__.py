"""`python -m sparsefmt`."""

from sparsefmt.cli import main

main(prog_name="sparsefmt")
