"""Foundations of all other packages: modules and their fields, checks, arrays, paths, files, processes."""
