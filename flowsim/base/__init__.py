"""What every other room stands on: modules and their fields, checks, arrays, paths, files, processes."""
