"""What a run leaves: results, and the files that hold them."""
