"""A finished run, to be read and to be seen."""
